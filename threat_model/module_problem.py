"""The reconstruction problem of any network with its loss, in five lines:

problem = ModuleProblem(net, nn.functional.cross_entropy, shape=(1, 28, 28), classes=10)
release = Release(problem.gradient({"image": x, "label": y}).sum(0), examples=len(y), steps=1, noise=0.0)
prior = GaussianPrior.fit(public_images, (0.0, 1.0))
found = match(problem, release, prior, Matching(), torch.Generator())     # or linear_span.solve with a tap
found.values["image"]
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..blocks.taps import Field, Tap
from ..errors import InputError
from .last_layer import LastLayer
from .problem import Problem, Values

_DIRECTIONS_AT_ONCE = 256


class ModuleProblem(Problem):
    """Gradients of `loss(module(input), label)`, one example at a time, over the parameters that require gradients.

    `shape`: of one input within `bounds`; `taps`: weights whose gradient shows the input, where they are known.
    `head`: the name of the linear layer that the network ends in, if its loss is cross-entropy: what enters it then
    comes out of a sum example by example. The order of parameters is that of their names.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        shape: tuple[int, ...],
        classes: int,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        taps: tuple[Tap, ...] = (),
        head: str | None = None,
    ) -> None:
        self.module = copy.deepcopy(module).cpu().double().eval()
        self.loss, self.taps = loss, taps
        named = sorted((n, p) for n, p in self.module.named_parameters() if p.requires_grad)
        self.names = [name for name, _ in named]
        self.shapes = [p.shape for _, p in named]
        self._parameters = {name: p.detach() for name, p in named}
        self.module.requires_grad_(False)
        fast = copy.deepcopy(self.module).float()
        self._fast = fast, {name: fast.get_parameter(name).detach() for name in self.names}
        self.fields = (
            Field(name="image", what="image", shape=shape, bounds=bounds, side="inputs"),
            Field(name="label", what="label", shape=(), classes=classes, side="targets"),
        )

        self.head, self._body = head, self.module
        if head is not None:
            layer = self.module.get_submodule(head)
            if not isinstance(layer, nn.Linear) or layer.bias is None:
                raise InputError("head", head, "expected a linear layer with a bias")
            self._body = copy.deepcopy(self.module)
            self._body.set_submodule(head, nn.Identity())

    @property
    def last_layer(self) -> LastLayer | None:
        if self.head is None:
            return None
        layer = self.module.get_submodule(self.head)
        return LastLayer(layer.get_parameter("weight"), layer.get_parameter("bias"))

    def features(self, images: Tensor) -> Tensor:
        """What enters the head: (K, *shape) -> (K, F)."""
        found: Tensor = self._body(images.double())
        return found

    def features_jacobian(self, images: Tensor) -> Tensor:
        """d features / d image, (K, n, F)."""

        def of(image: Tensor) -> Tensor:
            return self.features(image[None])[0]

        with sdpa_kernel(SDPBackend.MATH):
            found: Tensor = vmap(jacfwd(of))(images.double())  # (K, F, *shape)
        return found.flatten(2).mT

    def _of_one(self, image: Tensor, label: Tensor) -> Tensor:
        single = image.dtype == torch.float32
        module, own = self._fast if single else (self.module, self._parameters)

        def of(parameters: dict[str, Tensor]) -> Tensor:
            out = functional_call(module, parameters, (image[None],))
            found: Tensor = self.loss(out, label[None])
            return found

        g = grad(of)(own)
        return torch.cat([g[name].reshape(-1) for name in self.names])

    def gradient(self, values: Values) -> Tensor:
        """(K, P) of images (K, *shape) and labels (K,)."""
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            found: Tensor = vmap(self._of_one)(values["image"].double(), values["label"])
            return found

    def jacobian(self, values: Values, names: tuple[str, ...]) -> Tensor:
        """d gradient / d image, (K, n, P), computed in float32."""
        assert names == ("image",)
        rows = []
        with sdpa_kernel(SDPBackend.MATH):
            for image, label in zip(values["image"].float(), values["label"], strict=True):

                def along(direction: Tensor, image: Tensor = image, label: Tensor = label) -> Tensor:
                    tangent: Tensor = jvp(lambda v: self._of_one(v, label), (image,), (direction,))[1]
                    return tangent

                every = torch.eye(image.numel(), dtype=image.dtype).view(-1, *image.shape)
                rows.append(torch.cat([vmap(along)(some) for some in every.split(_DIRECTIONS_AT_ONCE)]))
        return torch.stack(rows)

    def sample(self, values: Values, generator: torch.Generator) -> Values:
        """As they are: nothing is drawn in training."""
        return values
