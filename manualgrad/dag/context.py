"""What a Function's setup_context and backward find as ctx, where a tape drives them."""

from typing import Any

from torch import Tensor


class Context:
    """torch.autograd's ctx, as far as rules use it; further attributes are theirs to set.

    needs_input_grad: per input of forward, whether the tape follows it.
    """

    def __init__(self, name: str, needs_input_grad: tuple[bool, ...]):
        self._name = name
        self.needs_input_grad = needs_input_grad
        self.materialize_grads = True
        self._saved: tuple[Any, ...] | None = ()
        self._versions: tuple[int, ...] = ()
        self._constant: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self._saved, self._versions = tensors, tuple(map(_version, tensors))

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        if self._saved is None:
            raise RuntimeError(f"manualgrad.dag: what {self._name} kept for backward is freed")
        for i, (tensor, version) in enumerate(zip(self._saved, self._versions, strict=True)):
            if _version(tensor) != version:
                raise RuntimeError(
                    f"manualgrad.dag: saved tensor {i} of {self._name}, of shape "
                    f"{tuple(tensor.shape)}, was changed in place between the recording and "
                    f"tape.backward(); change a clone(), or run backward first"
                )
        return self._saved

    def maybe_clear_saved_tensors(self) -> None:
        self._saved = None

    def set_materialize_grads(self, value: bool) -> None:
        self.materialize_grads = value

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """For forward mode, which a tape has not."""

    def mark_non_differentiable(self, *outputs: Tensor) -> None:
        self._constant += outputs

    def is_constant(self, output: Tensor) -> bool:
        """Has this result no derivative?"""
        return not differentiable(output) or any(output is c for c in self._constant)

    def mark_dirty(self, *inputs: Tensor) -> None:
        raise RuntimeError(
            f"manualgrad.dag: {self._name} writes to its inputs; a rule computes out of place"
        )


def differentiable(tensor: Tensor) -> bool:
    """Can there be a derivative? Complex numbers have one, though no rule here knows it."""
    return tensor.is_floating_point() or tensor.is_complex()


def _version(tensor: Any) -> int:
    """How often a tensor was changed in place; inference tensors do not count."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version
