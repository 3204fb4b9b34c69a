"""Looking at a grammar of prompts before images are made: `raypipe prompts`."""

from rich.markup import escape
from rich.table import Table

from jobs.progress import console
from raypipe.prompts import Grammar, balance, draw, load_grammar
from raypipe.prompts.text import TOKENS, least_tokens

MANY = 10_000  # draws whose balance is shown beside that of the few


def preview(count: int, grammar: str | None, seed: int) -> None:
    """Prints the first prompts of a seed, and the balance declared and achieved.

    Args:
        count: prompts to show.
        grammar: as `load_grammar` takes it.
        seed: seed of the run.

    Raises:
        UserError: where the grammar has a mistake.
    """
    loaded = load_grammar(grammar)
    drawn = [draw(loaded, seed, index) for index in range(max(count, MANY))]
    prompts = Table("index", "prompt", title=escape(loaded.path))
    for index, prompt in enumerate(drawn[:count]):
        prompts.add_row(str(index), escape(prompt.prompt))
    console.print(prompts)
    console.print(f"negative: {escape(loaded.negative)}", soft_wrap=True)
    people = [prompt.attributes for prompt in drawn]
    console.print(_balance(loaded, people[:count], people))
    for name, value, declared, reachable in loaded.out_of_reach():
        console.print(
            f"[red]out of reach[/] {escape(name)} {escape(repr(value))}: declared "
            f"{declared:.2%}, exclusions leave {reachable:.2%}; change its weight or exclude less",
            soft_wrap=True,
        )
    longest = max(least_tokens(prompt.prompt) for prompt in drawn)
    negative = least_tokens(loaded.negative)
    for name, tokens in (("longest prompt", longest), ("negative prompt", negative)):
        if tokens > TOKENS:
            console.print(
                f"[red]too long[/] the {name} has at least {tokens} tokens; Stable Diffusion reads "
                f"{TOKENS} and leaves out the rest",
                soft_wrap=True,
            )


def _balance(grammar: Grammar, few: list[dict[str, str]], many: list[dict[str, str]]) -> Table:
    table = Table("attribute", "value")
    for title in ("declared", "reachable", f"of {len(few):,}", f"of {len(many):,}"):
        table.add_column(title, justify="right")
    last = ""
    for small, large in zip(balance(grammar, few), balance(grammar, many), strict=True):
        if last and small.attribute != last:
            table.add_section()
        table.add_row(
            escape(small.attribute) if small.attribute != last else "",
            escape(small.value),
            *(
                f"{share:.2%}"
                for share in (small.declared, small.reachable, small.achieved, large.achieved)
            ),
        )
        last = small.attribute
    return table
