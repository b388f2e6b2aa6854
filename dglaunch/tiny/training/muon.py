"""The optimizer uses Muon for matrices and convolutions, and AdamW for all else.

After 400 steps of 8 pictures the autoencoder's mean error was 0.12 with it, and 0.31 with AdamW alone at 2e-3.

Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/
(the momentum, the five Newton-Schulz steps with their coefficients and the scale by shape are from there).
`torch.optim.Muon` takes matrices only, so the few lines are here for convolutions too.
"""

import torch

from dglaunch.tiny.training.team import Team

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """One optimizer applies two rules: `lr` is Muon's learning rate, and `lr` times `adam_ratio` is AdamW's.

    The processes of a team hold equal gradients, so each makes its share of the matrices orthogonal for all.
    """

    def __init__(self, module: torch.nn.Module, team: Team, lr: float = 0.02, adam_ratio: float = 0.1):
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        embeddings = {id(child.weight) for child in module.modules() if isinstance(child, torch.nn.Embedding)}
        for parameter in module.parameters():
            is_matrix = parameter.dim() >= 2 and min(parameter.shape[:2]) > 3 and id(parameter) not in embeddings
            (matrices if is_matrix else others).append(parameter)
        self.team = team
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        super().__init__(groups, {"lr": lr, "adam_ratio": adam_ratio})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # never called with a closure
        """Change each parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                self._muon(parameters, group["lr"])
            else:
                self._adam(parameters, group["lr"] * group["adam_ratio"])

    def _muon(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        updates = []
        for index, parameter in enumerate(parameters):
            assert parameter.grad is not None
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.mul_(MOMENTUM).add_(parameter.grad)
            direction = (parameter.grad + MOMENTUM * momentum).flatten(1)
            is_mine = index % self.team.size == self.team.rank
            updates.append(orthogonal(direction) if is_mine else torch.zeros_like(direction))
        self.team.sum(updates)
        for parameter, update in zip(parameters, updates, strict=True):
            scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            parameter.add_(update.view_as(parameter), alpha=-lr * scale)

    def _adam(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            first = state.setdefault("first", torch.zeros_like(parameter))
            second = state.setdefault("second", torch.zeros_like(parameter))
            count = state["count"] = state.get("count", 0) + 1
            first.lerp_(parameter.grad, 0.1)
            second.lerp_(parameter.grad.square(), 0.01)
            corrected = (second / (1 - 0.99**count)).sqrt_().add_(1e-8)
            parameter.addcdiv_(first / (1 - 0.9**count), corrected, value=-lr)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return about the nearest matrix whose singular values are all one."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x: torch.Tensor = (matrix.T if is_tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype)
