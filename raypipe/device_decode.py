"""JPEG faces to pixels on the device that trains on them, a batch at once, by nvImageCodec.

On a GPU its processors and the worker's CPU threads share the work: nvJPEG reads the Huffman code
on the CPU and does the rest on the GPU, where the pixels stay. The JPEG engine that some GPUs have
beside is left out: it takes a share of each batch that depends on the model, and so would the
pixels. On a CPU libjpeg-turbo decodes, in half the time that Pillow needs, to the same pixels
(`benchmarks/augment.py`).
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raypipe.batch_decode import decode_faces
from raypipe.errors import UserError
from raypipe.images import decode, encode_jpeg
from raypipe.recognizer import SIDE

# Colour between its samples is interpolated, as by Pillow. Without, smooth random pictures were off
# by 4.6 of 255 levels on average.
_OPTIONS = ":fancy_upsampling=1"
# Mean difference to Pillow, in levels of 255, that a decoder may have: what NVIDIA's own tests
# allow between GPU and CPU (NVIDIA/DALI, check_fancy_upsampling_body in test_image.py).
TOLERANCE = 1.0


def pack(blobs: Sequence[bytes]) -> dict[str, Tensor]:
    """Encoded images one after another, to travel as tensors.

    Returns:
        encoded uint8 (bytes of all,), and sizes int64 (N,), the bytes of each.
    """
    encoded = np.frombuffer(bytearray().join(blobs), np.uint8)
    sizes = np.array([len(blob) for blob in blobs], np.int64)
    return {"encoded": torch.from_numpy(encoded), "sizes": torch.from_numpy(sizes)}


class DeviceDecoder:
    """Decodes on one device, for one thread at a time."""

    def __init__(self, device: torch.device, threads: int) -> None:
        """Loads the library and decodes a known picture with it.

        Args:
            device: a GPU with its index, or the CPU.
            threads: CPU threads that take part.

        Raises:
            UserError: where the library is missing, or does not decode JPEG on the device as Pillow
                does.
        """
        # Its warnings name a place in the batch; what is wrong with an image is said by Pillow.
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
        try:
            from nvidia import nvimgcodec
        except ImportError:
            raise UserError(
                "train.decoder: nvimgcodec is not installed on a worker; run "
                "`pip install nvidia-nvimgcodec-cu13[nvjpeg]` there, or set `decoder: pillow`"
            ) from None
        self._device, self._threads = device, threads
        self._code_stream = nvimgcodec.CodeStream
        on_gpu, kinds = device.type == "cuda", nvimgcodec.BackendKind
        # nvJPEG's CPU threads wait for the GPU to be done with the image before. In the stream that
        # trains they would wait for the training step, too, and the next step for them.
        self._queue = torch.cuda.Stream(device) if on_gpu else None
        self._decoder = nvimgcodec.Decoder(
            device_id=device.index if on_gpu else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=threads,
            backends=[nvimgcodec.Backend(kinds.HYBRID_CPU_GPU if on_gpu else kinds.CPU_ONLY)],
            options=_OPTIONS,
        )
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB
        )
        self._check()

    def decode(self, encoded: Tensor, sizes: Tensor, sources: Sequence[str]) -> Tensor:
        """Decodes JPEG here, and by `decode_faces` what is not an ordinary JPEG face.

        A GPU may still be at work when this returns, as PyTorch's operations are.

        Args:
            encoded, sizes: what `pack` returned, on the CPU.
            sources: what to call each image in an error.

        Returns:
            uint8 (N, 112, 112, 3), RGB, on the device.

        Raises:
            UserError: for the first image that cannot be decoded or is not 112×112, naming its
                source.
        """
        blobs = np.split(encoded.numpy(), np.cumsum(sizes.numpy())[:-1])
        with torch.cuda.stream(self._queue):
            images = self._faces(blobs, sources)
        if self._queue is not None:
            training = torch.cuda.current_stream(self._device)
            training.wait_stream(self._queue)
            images.record_stream(training)
        return images

    def jpeg_faces(self, blobs: Sequence[np.ndarray]) -> list[Tensor | None]:
        """What the library decodes, on the device and in its stream.

        Args:
            blobs: uint8 (bytes,) of each encoded image.

        Returns:
            Faces uint8 (112, 112, 3), RGB, and none for what is left to Pillow.
        """
        streams = [self._stream(blob) for blob in blobs]
        ours = [stream for stream in streams if stream is not None]
        queue = 0 if self._queue is None else self._queue.cuda_stream
        images = iter(self._decoder.decode(ours, params=self._params, cuda_stream=queue))
        found = [None if stream is None else next(images) for stream in streams]
        return [None if image is None else self._tensor(image) for image in found]

    def _faces(self, blobs: Sequence[np.ndarray], sources: Sequence[str]) -> Tensor:
        decoded = self.jpeg_faces(blobs)
        rest = [row for row, image in enumerate(decoded) if image is None]
        others = [blobs[row].tobytes() for row in rest]
        names = [sources[row] for row in rest]
        by_pillow = iter(decode_faces(others, names, threads=self._threads).to(self._device))
        return torch.stack([next(by_pillow) if image is None else image for image in decoded])

    def _stream(self, blob: np.ndarray) -> Any | None:
        """A JPEG face that all decoders take for the same, or none.

        JFIF leaves no doubt about the colours: three channels are YCbCr. An end says that nothing
        is cut off, which a GPU might fill up in silence.
        """
        start, end = blob[:11].tobytes(), blob[-2:].tobytes()
        if start[:4] != b"\xff\xd8\xff\xe0" or start[6:] != b"JFIF\0" or end != b"\xff\xd9":
            return None
        try:
            stream = self._code_stream(blob)
            shape = (stream.height, stream.width, stream.num_channels)
        except RuntimeError:  # what follows says no size
            return None
        return stream if shape == (SIDE, SIDE, 3) else None

    def _tensor(self, image: Any) -> Tensor:
        """Pixels where they are; a host image has no DLPack where there is no GPU driver."""
        if self._queue is not None:
            return torch.from_dlpack(image)
        return torch.from_numpy(np.asarray(image))

    def _check(self) -> None:
        picture = encode_jpeg(_known_picture())
        with torch.cuda.stream(self._queue):
            image = self.jpeg_faces([np.frombuffer(picture, np.uint8)])[0]
            pixels = None if image is None else image.cpu()
        if pixels is None:
            raise UserError(
                f"train.decoder: nvimgcodec cannot decode JPEG on {self._device}; install "
                "nvidia-nvjpeg on the workers, or set `decoder: pillow`"
            )
        expected = torch.from_numpy(decode(picture, source="known picture").astype(np.int16))
        off = (pixels - expected).abs().float().mean().item()
        if off > TOLERANCE:
            raise UserError(
                f"train.decoder: nvimgcodec on {self._device} decodes a known picture {off:.1f} of "
                f"255 levels off on average, allowed is {TOLERANCE:g}; set `decoder: pillow`"
            )


def _known_picture() -> np.ndarray:
    """Waves of another length and direction in each channel, uint8 (112, 112, 3): swapped channels,
    exchanged rows and columns and colours that are not interpolated all show."""
    row, column = np.mgrid[:SIDE, :SIDE]
    waves = np.stack([column / 5, row / 7, (row + 2 * column) / 11], 2)
    return (127.5 + 100 * np.sin(waves)).astype(np.uint8)
