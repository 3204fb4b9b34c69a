"""What other trainers take: the images once, as a folder a person, and beside them the lists and
configurations of each trainer, so that a set can be trained on elsewhere in one step.

- deepinsight/insightface, recognition/arcface_torch: where its `rec` has no train.rec it reads it
  as torchvision's ImageFolder (dataset.py); sizes come from the configuration (configs/*.py).
- HaiyuWu/SOTA-Face-Recognition-Train-and-Test: `train_source` may be a .txt of absolute paths, read
  by pandas, classes being the folders in the order of their names (data/data_loader_train_lmdb.py).
- apache/mxnet, tools/im2rec.py: NUMBER<tab>LABEL<tab>PATH.
- wujiyang/Face_Pytorch and file lists in caffe's manner: PATH LABEL.
"""

import os
import re
import shlex

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import Record
from raypipe.formats.path_list import FolderWriter

IMAGES = "images"

# Both trainers update the settings of their base.py by a configuration's `config`, so it may be a
# plain dict.
_ARCFACE = """\
# To be copied into recognition/arcface_torch/configs/. What is not here is in its base.py.
config = dict(
    margin_list=(1.0, 0.5, 0.0),
    network="r50",
    output=None,
    sample_rate=1.0,
    fp16=True,
    batch_size=128,
    lr=0.1,  # for 8 GPUs; 0.02 for one, as in configs/ms1mv3_r50_onegpu.py
    dali=False,
    rec={images!r},
    num_classes={classes},
    num_image={count},
    num_epoch=20,
    warmup_epoch=0,
    val_targets=[],
)
"""

_SOTA = """\
# To be copied into configs/. What is not here is in its base.py.
config = dict(
    prefix={name!r},
    head="arcface",
    margin=0.5,
    depth="50",
    num_ims={count},
    train_source={source!r},
    mask=None,
)
"""

_README = """\
{count:,} images of {classes:,} identities; the classes are 0 to {last}.
If this folder is moved, sota_fr.txt and both configurations have to be written anew, for they hold
its place: {place}

arcface_torch (github.com/deepinsight/insightface), in its folder recognition/arcface_torch. It
does not resize, so the images have to be 112x112.

    cp {arcface} configs/
    torchrun --nproc_per_node=8 train_v2.py configs/{name}_arcface_torch

SOTA-FR (github.com/HaiyuWu/SOTA-Face-Recognition-Train-and-Test), in its root. It wants
verification sets in ./test_sets, see its README. Where train.py stops because `data` has no
WebDataLoader, take that name out of its import.

    cp {sota} configs/
    torchrun --nproc_per_node=4 train.py --config_file configs/{name}_sota_fr.py

A .rec with its .idx, for MXNet and DALI; nothing is encoded anew. The second way needs mxnet.

    raypipe convert {lst} {name}_rec --format im2rec
    cd {where} && python -m mxnet.tools.im2rec --pass-through train .

Anything that reads torchvision's ImageFolder takes images/; file lists of PATH LABEL: train.txt.
"""


class ListsWriter:
    """Writes images, lists and configurations; classes are numbered 0 to K-1 as they come.

    Attributes:
        by_label: True.
    """

    by_label = True

    def __init__(self, path: str, *, place: str) -> None:
        """See `raypipe.formats.open_writer`.

        Args:
            place: where the folder will come to lie; the lists name it.

        Raises:
            UserError: where the trainers could not read that.
        """
        if storage.is_uri(place):
            raise UserError(f"{place}: the lists are of paths on a local disk; choose one there")
        self._place = storage.filesystem(place)[1].rstrip("/")
        if re.search(r'[,"\s]', self._place.replace(" ", "")):
            raise UserError(
                f"{self._place}: SOTA-FR reads its list as CSV; "
                "choose a place without comma, quote or line break"
            )
        os.makedirs(path)
        self._path = path
        self._folder = FolderWriter(os.path.join(path, IMAGES))
        self._lists = [
            open(os.path.join(path, name), "w", newline="\n")  # noqa: SIM115  (see finish)
            for name in ("sota_fr.txt", "train.txt", "train.lst")
        ]
        self._label = -1
        self._classes = 0
        self._count = 0

    def write(self, record: Record) -> None:
        """See `raypipe.formats.Writer`."""
        if record.label != self._label:
            self._label = record.label
            self._classes += 1
        label = self._classes - 1
        path = f"{IMAGES}/{self._folder.place(record._replace(label=label))}"
        absolute, spaced, numbered = self._lists
        absolute.write(f"{self._place}/{path}\n")
        spaced.write(f"{path} {label}\n")
        numbered.write(f"{self._count}\t{label:f}\t{path}\n")
        self._count += 1

    def finish(self) -> None:
        """See `raypipe.formats.Writer`."""
        for file in self._lists:
            file.close()
        name = re.sub(r"\W", "_", os.path.basename(self._place), flags=re.ASCII)
        known = {
            "name": name,
            "classes": self._classes,
            "count": self._count,
            "last": self._classes - 1,
            "images": f"{self._place}/{IMAGES}",
            "source": f"{self._place}/sota_fr.txt",
            "place": self._place,
        }
        paths = {
            "arcface": f"{self._place}/{name}_arcface_torch.py",
            "sota": f"{self._place}/{name}_sota_fr.py",
            "lst": f"{self._place}/train.lst",
            "where": self._place,
        }
        quoted = {key: shlex.quote(path) for key, path in paths.items()}
        for file_name, text in (
            (f"{name}_arcface_torch.py", _ARCFACE.format(**known)),
            (f"{name}_sota_fr.py", _SOTA.format(**known)),
            ("README.txt", _README.format(**known, **quoted)),
        ):
            with open(os.path.join(self._path, file_name), "w", newline="\n") as file:
                file.write(text)
