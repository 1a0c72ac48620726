"""Which part of a model travels: the rule for `base`, `freeze`, `personal` and `lora`. Names alone, no torch.

Each parameter is one of three:

    shared    trained by all and sent: a model file, an update holds exactly these
    personal  trained by each node for itself, and never sent; at first as the base or the seed has it
    fixed     as the base has it, or without a base as the seed does, everywhere and for good

Patterns are fnmatch patterns of names, upper and lower case apart. `personal` names what is personal. With
`lora` only adapters are shared: `targets` are patterns of layers, and such a layer gets an adapter unless its
weight is frozen or personal. Without it everything is shared that `freeze` does not name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from dfl_ledger.errors import SpecInvalid
from dfl_node.train.codec import Schema
from dfl_node.train.trainer import ModelConfig

ADAPTER_A, ADAPTER_B = "lora_a", "lora_b"  # an adapter's tensors are LAYER.lora_a and LAYER.lora_b
PERSONAL = "personal."  # before the names of personal tensors in a node's own state


@dataclass(frozen=True, slots=True)
class Parts:
    """Names, in the order given."""

    shared: tuple[str, ...]
    personal: tuple[str, ...]
    fixed: tuple[str, ...]


def plain(config: ModelConfig) -> ModelConfig:
    """The same architecture, all of it shared."""
    return ModelConfig(config.name, config.args)


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def parts(names: Sequence[str], config: ModelConfig) -> Parts:
    """What becomes of each parameter. `names` are all of them, those of adapters too."""
    personal = [name for name in names if matches(name, config.personal)]
    shared = [
        name
        for name in names
        if name not in personal
        and (
            name.endswith((f".{ADAPTER_A}", f".{ADAPTER_B}"))
            if config.lora is not None
            else not matches(name, config.freeze)
        )
    ]
    fixed = [name for name in names if name not in personal and name not in shared]
    return Parts(tuple(shared), tuple(personal), tuple(fixed))


def adapted(layers: Iterable[str], config: ModelConfig) -> list[str]:
    """Which layers get an adapter."""
    targets = () if config.lora is None else config.lora.targets
    taken = (*config.freeze, *config.personal)
    return [layer for layer in layers if matches(layer, targets) and not matches(f"{layer}.weight", taken)]


def some(schema: Schema, names: Collection[str], prefix: str = "") -> Schema:
    """The layout of some of a layout's tensors, renamed PREFIX + NAME."""
    wanted = set(names)
    return Schema(
        tuple(
            replace(tensor, name=prefix + tensor.name) for tensor in schema.tensors if tensor.name in wanted
        )
    )


def check(plain_names: Sequence[str], names: Sequence[str], config: ModelConfig) -> None:
    """Raises SpecInvalid with the field's name. `names` has those of adapters beside the plain ones."""
    for field, patterns, known in (
        ("model.freeze", config.freeze, plain_names),
        ("model.personal", config.personal, names),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise SpecInvalid(field, f"{pattern!r:.80} matches no parameter: {_some(known)}")
    for name in plain_names:
        if matches(name, config.personal) and matches(name, config.freeze):
            raise SpecInvalid("model.personal", f"{name} is frozen by model.freeze too")
    found = parts(names, config)
    if found.shared:
        return
    if config.lora is not None:
        why = "match no layer with a weight that is neither frozen nor personal"
        raise SpecInvalid("model.lora.targets", why)
    if found.personal:
        raise SpecInvalid("model.personal", "leaves nothing to share: every parameter is personal or frozen")
    raise SpecInvalid("model.freeze", "leaves nothing to train: every parameter is frozen")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
