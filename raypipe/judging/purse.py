"""A budget that is never overdrawn: what a call may cost is set aside before it is made."""


class Purse:
    """Money for calls, in dollars.

    Args:
        budget: that may be spent in all; None: no limit.
        spent: before.
    """

    def __init__(self, budget: float | None, spent: float) -> None:
        self._budget = budget
        self.spent = spent
        self._reserved = 0.0

    def reserve(self, most: float) -> bool:
        """Sets aside what a call costs at most; False where that is not left."""
        if self._budget is not None and self.spent + self._reserved + most > self._budget:
            return False
        self._reserved += most
        return True

    def settle(self, most: float, paid: float) -> None:
        """Takes what a call did cost; the rest of what was set aside is free again."""
        self._reserved -= most
        self.spent += paid
