"""Pictures of prompts: each depends on its own seed alone, and every mistake has one line."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from raypipe import storage
from raypipe.config.diffusion import DiffusionConfig
from raypipe.config.diffusion import LoraConfig as Lora
from raypipe.diffusion import Diffusion, SecondPass
from raypipe.diffusion_files import digest, model_name, resolve_file, weights_files
from raypipe.errors import UserError
from raypipe.formats.staging import upload

CPU = torch.device("cpu")
PROMPTS = ["dark skin", "light skin, dark hair", "facing the camera", "looking to the left", "hair"]
NEGATIVES = ["blurred"] * len(PROMPTS)
SEEDS = [11, 12, 13, 14, 2**63 - 1]
TOKENS, WIDTH = 16, 32


pytestmark = pytest.mark.usefixtures("one_thread")


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(model_max_length=TOKENS).train_new_from_iterator(
        [[text] for text in PROMPTS], 300, show_progress=False
    )


def text_config(words: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def unet(cross: int, **more) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=cross,
        attention_head_dim=4,
        **more,
    )


def vae() -> diffusers.AutoencoderKL:
    made = diffusers.AutoencoderKL(
        sample_size=16,
        block_out_channels=(16, 16),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    with torch.no_grad():  # an untrained decoder paints in grey
        made.decoder.conv_out.weight.mul_(10)
    return made


def scheduler() -> diffusers.SchedulerMixin:
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )


def stable_diffusion(safety_checker=None) -> diffusers.StableDiffusionPipeline:
    torch.manual_seed(0)
    words = tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(words)),
        tokenizer=words,
        unet=unet(WIDTH),
        scheduler=scheduler(),
        safety_checker=safety_checker,
        feature_extractor=safety_checker and CLIPImageProcessorPil(size=32, crop_size=32),
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Untrained pipelines, as folders."""
    root = tmp_path_factory.mktemp("pipelines")
    sd = stable_diffusion()
    sd.save_pretrained(root / "sd")
    words = sd.tokenizer
    torch.manual_seed(1)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(words)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(words)),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet(2 * WIDTH, **added, projection_class_embeddings_input_dim=6 * 8 + WIDTH),
        scheduler=scheduler(),
        add_watermarker=False,
    ).save_pretrained(root / "sdxl")
    return {name: str(root / name) for name in ("sd", "sdxl")}


@pytest.fixture
def broken(folders, tmp_path) -> str:
    """A copy of a pipeline, to be broken."""
    return str(shutil.copytree(folders["sd"], tmp_path / "model"))


def config(model: str, **settings) -> DiffusionConfig:
    return DiffusionConfig(**{"model": model, "steps": 2, "batch_size": 4, **settings})


def pictures(model: str, picked: list[int], seeds: list[int] = SEEDS, **settings) -> np.ndarray:
    drawn = Diffusion(config(model, **settings), CPU).draw(
        [PROMPTS[k] for k in picked], [NEGATIVES[k] for k in picked], [seeds[k] for k in picked]
    )
    return np.stack([picture.rgb for picture in drawn])


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference in grey levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_picture_is_the_same_bytes_in_every_slot_and_company(folders, name) -> None:
    together = pictures(folders[name], [0, 1, 2, 3, 4])
    assert together.shape == (5, 16, 16, 3) and together.dtype == np.uint8
    assert together.std() > 10 and levels(together[0], together[1]) > 10
    for order in ([3, 1, 4, 0, 2], [4], [2, 2, 0], [1, 0, 0, 0]):
        assert np.array_equal(pictures(folders[name], order), together[order])


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_size_of_a_batch_changes_one_grey_level_at_most(folders, name) -> None:
    one = pictures(folders[name], [0, 1, 2, 3, 4], batch_size=1, steps=5)
    eight = pictures(folders[name], [0, 1, 2, 3, 4], batch_size=8, steps=5)
    assert levels(one, eight) <= 1


def test_nothing_to_draw(folders) -> None:
    assert Diffusion(config(folders["sd"]), CPU).draw([], [], []) == []


def test_the_prompt_counts_and_the_negative_one_where_there_is_guidance(folders) -> None:
    for guidance, counts in ((7.5, True), (1.0, False), (0.0, False)):
        model = Diffusion(config(folders["sd"], guidance=guidance), CPU)
        first, other, negated = model.draw(
            ["dark skin", "light hair", "dark skin"], ["", "", "blurred"], [5, 5, 5]
        )
        assert levels(first.rgb, other.rgb) > 0
        assert (levels(first.rgb, negated.rgb) > 0) is counts


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "LCMScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_another_scheduler_draws_noise_for_each_picture_alone(folders, name) -> None:
    settings = {"scheduler": name, "guidance": 1.0, "steps": 4}
    together = pictures(folders["sd"], [0, 1, 2], **settings)
    assert levels(together, pictures(folders["sd"], [0, 1, 2], guidance=1.0, steps=4)) > 0
    assert np.array_equal(pictures(folders["sd"], [2], **settings)[0], together[2])


def test_sizes_and_slices_of_attention(folders) -> None:
    wide = pictures(folders["sd"], [0], width=32, height=24)
    assert wide.shape == (1, 24, 32, 3)
    sliced = pictures(folders["sd"], [0, 1], attention_slicing=True)
    assert levels(sliced, pictures(folders["sd"], [0, 1])) <= 1
    with pytest.raises(ValidationError, match="both width and height"):
        config("x", width=64)


def test_a_picture_that_the_safety_checker_blanks_says_so(tmp_path) -> None:
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(
            text_config={**tiny, "num_attention_heads": 2},
            vision_config={**tiny, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
            projection_dim=16,
        )
    )
    with torch.no_grad():  # everything is as near to a concept as -1
        checker.concept_embeds_weights.fill_(-1.5)
    folder = str(tmp_path / "checked")
    stable_diffusion(checker).save_pretrained(folder)
    change_index(folder, feature_extractor=["transformers", "CLIPImageProcessor"])  # as published
    drawn = Diffusion(config(folder), CPU).draw(PROMPTS, NEGATIVES, SEEDS)
    assert [picture.blanked for picture in drawn] == [True] * 5
    assert all(picture.rgb.max() == 0 for picture in drawn)


def test_without_a_safety_checker_nothing_is_blanked(folders) -> None:
    drawn = Diffusion(config(folders["sdxl"]), CPU).draw(PROMPTS, NEGATIVES, SEEDS)
    assert [picture.blanked for picture in drawn] == [False] * 5


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> str:
    """Low-rank changes of the small pipeline's UNet."""
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(2)
    network = unet(WIDTH)
    network.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(network)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        folder, {name: 5 * value for name, value in layers.items()}
    )
    return str(folder / "pytorch_lora_weights.safetensors")


def test_a_lora_changes_the_pictures_by_its_scale(folders, lora) -> None:
    plain = pictures(folders["sd"], [0, 1])
    assert levels(plain, pictures(folders["sd"], [0, 1], lora={"path": lora})) > 1
    assert levels(plain, pictures(folders["sd"], [0, 1], lora={"path": lora, "scale": 0})) <= 1
    folder, name = os.path.split(lora)
    in_folder = pictures(folders["sd"], [0, 1], lora={"path": folder, "weight_name": name})
    assert np.array_equal(in_folder, pictures(folders["sd"], [0, 1], lora={"path": lora}))


def face_id(cross: int, channels: Callable[[str], int], dimension: int = 512) -> dict:
    """An untrained IP-Adapter FaceID as it is published, with its own LoRA."""
    generator = torch.Generator().manual_seed(3)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    projection = {
        "proj.0.weight": tensor(2 * dimension, dimension),
        "proj.0.bias": tensor(2 * dimension),
        "proj.2.weight": tensor(4 * cross, 2 * dimension),
        "proj.2.bias": tensor(4 * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    layers = {}
    for number, name in enumerate(unet(cross).attn_processors):
        wide, seen = channels(name), channels(name) if number % 2 == 0 else cross
        if number % 2:  # every second attention is to the prompt
            layers |= {f"{number}.to_{kind}_ip.weight": tensor(wide, cross) for kind in "kv"}
        for kind, width in (("q", wide), ("k", seen), ("v", seen), ("out", wide)):
            layers[f"{number}.to_{kind}_lora.down.weight"] = tensor(2, width)
            layers[f"{number}.to_{kind}_lora.up.weight"] = tensor(wide, 2)
    return {"image_proj": projection, "ip_adapter": layers}


def channels(name: str) -> int:
    """Channels of the small UNet at one of its attentions."""
    return 32 if name.startswith("mid_block") else 16


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    for name, cross in (("sd", WIDTH), ("sdxl", 2 * WIDTH)):
        made = face_id(cross, channels)
        torch.save(made, folder / f"{name}.bin")
        flat = {f"{group}.{key}": value for group in made for key, value in made[group].items()}
        save_file(flat, folder / f"{name}.safetensors")
    return {path.name: str(path) for path in folder.iterdir()}


FACES = np.random.default_rng(4).standard_normal((3, 512)).astype(np.float32)


def reposed(model: str, adapter: str, picked: list[int], **settings) -> np.ndarray:
    second = {"adapter": adapter, "steps": 2, **settings}
    model_ = SecondPass(config(model, second_pass=second), CPU)
    drawn = model_.reposed(
        ["hair"] * len(picked), [""] * len(picked), [7] * len(picked), FACES[picked]
    )
    return np.stack([picture.rgb for picture in drawn])


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_second_pass_paints_the_face_it_is_given(folders, adapters, name, guidance) -> None:
    model, adapter = folders[name], adapters[f"{name}.bin"]
    together = reposed(model, adapter, [0, 1, 2], guidance=guidance)
    assert levels(together[0], together[1]) > 0
    assert np.array_equal(reposed(model, adapter, [2], guidance=guidance)[0], together[2])
    safe = reposed(model, adapters[f"{name}.safetensors"], [0, 1, 2], guidance=guidance)
    assert np.array_equal(safe, together)


def test_the_length_of_an_embedding_does_not_count_and_scale_zero_is_no_face(folders, adapters):
    settings = {"adapter": adapters["sd.bin"], "steps": 2}
    model = SecondPass(config(folders["sd"], second_pass=settings), CPU)
    one, long = model.reposed(["hair"] * 2, [""] * 2, [7] * 2, FACES[[0]] * [[1], [20]])
    assert levels(one.rgb, long.rgb) <= 1
    nobody = reposed(folders["sd"], adapters["sd.bin"], [0, 1], scale=0)
    assert np.array_equal(nobody[0], nobody[1])


def test_a_second_pass_has_its_own_lora_and_scheduler(folders, adapters, lora) -> None:
    plain = reposed(folders["sd"], adapters["sd.bin"], [0])
    for changed in ({"lora": {"path": lora}}, {"scheduler": "LCMScheduler"}):
        assert levels(plain, reposed(folders["sd"], adapters["sd.bin"], [0], **changed)) > 0


def test_embeddings_of_another_length_are_named(folders, adapters) -> None:
    model = SecondPass(config(folders["sd"], second_pass={"adapter": adapters["sd.bin"]}), CPU)
    with pytest.raises(UserError, match="embeddings of 512 numbers and the embedder makes 128"):
        model.reposed(["hair"], [""], [1], np.ones((1, 128), np.float32))


def test_a_digest_names_every_file_and_sees_every_change(broken, lora, adapters) -> None:
    names = weights_files(config(broken))
    assert "unet/diffusion_pytorch_model.safetensors" in names
    assert "vae/diffusion_pytorch_model.safetensors" in names
    assert {"model_index.json", "scheduler/scheduler_config.json"} <= set(names)
    assert any(name.startswith("tokenizer/tokenizer") for name in names)
    before = digest(config(broken))
    assert len(before) == 64
    Path(broken, "README.md").write_text("another card")
    Path(broken, "unet", "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert digest(config(broken)) == before
    found = {before, digest(config(broken, lora={"path": lora}))}
    second = config(broken, second_pass={"adapter": adapters["sd.bin"]})
    assert digest(second) == before
    found.add(digest(second, second_pass=True))
    path = Path(broken, "vae", "diffusion_pytorch_model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    found.add(digest(config(broken)))
    assert len(found) == 4


def test_a_hub_id_is_taken_from_the_cache_without_a_network(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--nobody--faces"
    shutil.copytree(folders["sd"], root / "snapshots" / ("a" * 40))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    cached = pictures("nobody/faces", [0])
    assert np.array_equal(cached, pictures(folders["sd"], [0]))
    assert digest(config("nobody/faces")) == digest(config(folders["sd"]))


def test_a_pipeline_in_a_bucket(folders, s3_bucket, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAYPIPE_CACHE", str(tmp_path))
    uri = f"{s3_bucket}/pipelines/sd"
    upload(folders["sd"], uri)
    storage.write_bytes(f"{uri}/unet/diffusion_pytorch_model.bin", b"another format")
    storage.write_bytes(f"{uri}/flax_model.msgpack", b"of another library")
    assert digest(config(uri)) == digest(config(folders["sd"]))
    assert model_name(config(uri)) == model_name(config(folders["sd"])) == "sd"
    assert np.array_equal(pictures(uri, [0]), pictures(folders["sd"], [0]))
    assert not [*tmp_path.rglob("*.bin"), *tmp_path.rglob("*.msgpack")]
    message = f"seeds.diffusion.model: {s3_bucket}/no/folder/model_index.json: cannot be read"
    assert refused(f"{s3_bucket}/no/folder").startswith(message)
    storage.delete(f"{uri}/unet")
    assert f"{uri}: the part 'unet' that model_index.json names is missing" in refused(uri)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lora_in_a_bucket(kind, s3_bucket, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAYPIPE_CACHE", str(tmp_path))
    folder = f"{s3_bucket}/loras/lcm"
    storage.write_bytes(f"{folder}/lora.safetensors", b"weights")
    path = f"{folder}/lora.safetensors" if kind == "file" else folder
    given = Lora(path=path, weight_name=None if kind == "file" else "lora.safetensors")
    assert Path(resolve_file("seeds.diffusion.lora", given)).read_bytes() == b"weights"
    missing = given.model_copy(update={"path": f"{s3_bucket}/no.safetensors"})
    with pytest.raises(UserError, match=r"seeds.diffusion.lora: .*/no.safetensors: no such file"):
        resolve_file("seeds.diffusion.lora", missing)


def refused(model: str, **settings) -> str:
    with pytest.raises(UserError) as caught:
        Diffusion(config(model, **settings), CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.slow  # waits for the name of the hub to be looked up
def test_a_hub_id_that_cannot_be_fetched(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "seeds.diffusion.model: 'nobody/no-such-faces' is no folder" in refused(
        "nobody/no-such-faces"
    )
    given = {"path": "nobody/no-such-lora", "weight_name": "lora.safetensors"}
    assert "seeds.diffusion.lora: 'nobody/no-such-lora' is no folder" in refused(
        folders["sd"], lora=given
    )


@pytest.mark.parametrize("model", ["no/such/folder", "/no/folder", "nofolder", "./folder"])
def test_a_path_that_is_no_hub_id(model) -> None:
    assert refused(model) == f"seeds.diffusion.model: {model}: no such file or folder here"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("model_index.json", "model_index.json: cannot be read"),
        ("unet", "the part 'unet' that model_index.json names is missing"),
        ("unet/diffusion_pytorch_model.safetensors", "the part 'unet' has no .safetensors file"),
        ("text_encoder/config.json", "not a pipeline that diffusers can load"),
        ("tokenizer/tokenizer.json", "the part 'tokenizer' has no vocabulary"),
        ("tokenizer/tokenizer_config.json", "the part 'tokenizer' has no tokenizer_config.json"),
    ],
)
def test_a_missing_part(broken, part, message) -> None:
    path = Path(broken, part)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert message in (found := refused(broken)) and broken in found


def test_weights_that_are_not_whole_or_of_another_network(broken) -> None:
    path = Path(broken, "unet", "diffusion_pytorch_model.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    assert f"{path}: not a whole safetensors file" in refused(broken)
    unet(2 * WIDTH).save_pretrained(Path(broken, "other"))
    shutil.copy(Path(broken, "other", path.name), path)
    assert f"{broken}: not a pipeline that diffusers can load" in refused(broken)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_a_file_lacks_are_not_drawn_at_random(broken, part) -> None:
    (path,) = Path(broken, part).glob("*.safetensors")
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if name.endswith("bias")))
    save_file(tensors, path, metadata={"format": "pt"})
    assert f"the files of the part {part!r} hold" in refused(broken)


def test_pickled_weights_are_not_read(broken) -> None:
    path = Path(broken, "vae", "diffusion_pytorch_model.safetensors")
    path.rename(path.with_suffix(".bin"))
    assert "the part 'vae' has no .safetensors file; other weight files" in refused(broken)


def change_index(folder: str, **changed) -> None:
    path = Path(folder, "model_index.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize(
    "kind", ["DDPMPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionControlNetPipeline"]
)
def test_a_pipeline_that_draws_no_pictures_of_text(broken, kind) -> None:
    change_index(broken, _class_name=kind)
    assert f"model_index.json: {kind} is no pipeline that" in refused(broken)


def test_code_in_a_folder_is_not_run(broken, tmp_path) -> None:
    mark = tmp_path / "was_run"
    Path(broken, "unet", "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: ...\n")
    change_index(broken, unet=["own", "Own"])
    assert "not a pipeline that diffusers can load" in refused(broken)
    Path(broken, "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: ...\n")
    change_index(broken, _class_name=["own", "Own"])
    assert "names no pipeline class" in refused(broken)
    assert not mark.exists()


def test_variants(broken) -> None:
    assert "variant" in refused(broken, variant="fp16")
    path = Path(broken, "unet", "diffusion_pytorch_model.safetensors")
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert "the part 'unet' has no .safetensors" in refused(broken)
    assert f"unet/{path.stem}.fp16.safetensors" in weights_files(config(broken, variant="fp16"))
    assert pictures(broken, [0], variant="fp16").shape == (1, 16, 16, 3)


def test_schedulers_that_do_not_fit(folders) -> None:
    assert refused(folders["sd"], scheduler="DPMSolverMultistep") == (
        "seeds.diffusion.scheduler: unknown scheduler 'DPMSolverMultistep'; did you mean "
        "'DPMSolverMultistepScheduler'?"
    )


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloading_needs_a_gpu(folders, how) -> None:
    assert f"cpu_offload: '{how}' moves weights" in refused(folders["sd"], cpu_offload=how)


def test_loras_that_do_not_fit(folders, lora, tmp_path) -> None:
    assert "not a LoRA of StableDiffusionXLPipeline" in refused(
        folders["sdxl"], lora={"path": lora}
    )
    other = str(tmp_path / "other.safetensors")
    save_file({"somewhere.weight": torch.ones(2, 2)}, other)
    assert f"{other}: not a LoRA of" in refused(folders["sd"], lora={"path": other})
    Path(other).write_bytes(b"nothing")
    assert f"{other}: not a LoRA of" in refused(folders["sd"], lora={"path": other})
    gone = {"path": str(tmp_path), "weight_name": "gone.safetensors"}
    assert "seeds.diffusion.lora" in refused(folders["sd"], lora=gone)
    with pytest.raises(ValidationError, match=r"only \.safetensors are read"):
        config("x", lora={"path": "lora.bin"})
    with pytest.raises(ValidationError, match="give its weight_name"):
        config("x", lora={"path": "some/lora"})


class Mark:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def refused_adapter(model: str, adapter: str) -> str:
    with pytest.raises(UserError) as caught:
        SecondPass(config(model, second_pass={"adapter": adapter}), CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_adapters_that_do_not_fit(folders, adapters, tmp_path) -> None:
    of_another = refused_adapter(folders["sdxl"], adapters["sd.bin"])
    assert "an IP-Adapter of another model than this StableDiffusionXLPipeline" in of_another
    path = tmp_path / "adapter.bin"
    made = face_id(WIDTH, channels)
    made["ip_adapter"].pop("3.to_k_ip.weight")
    torch.save(made, path)
    assert "an IP-Adapter of another model" in refused_adapter(folders["sd"], str(path))
    made["image_proj"]["perceiver_resampler.proj_in.weight"] = torch.ones(2, 2)
    torch.save(made, path)
    assert "not an IP-Adapter FaceID" in refused_adapter(folders["sd"], str(path))
    mark = tmp_path / "was_run"
    path.write_bytes(pickle.dumps({"image_proj": Mark(mark)}, protocol=2))
    assert "not weights that can be loaded safely" in refused_adapter(folders["sd"], str(path))
    torch.save({"image_proj": Mark(mark)}, path)
    assert "not weights that can be loaded safely" in refused_adapter(folders["sd"], str(path))
    assert not mark.exists()


@pytest.mark.slow
def test_compiled_pictures_are_the_same_but_for_rounding(folders) -> None:
    compiled = pictures(folders["sd"], [0, 1], compile=True)
    assert levels(compiled, pictures(folders["sd"], [0, 1])) <= 1
    assert np.array_equal(pictures(folders["sd"], [1], compile=True)[0], compiled[1])
