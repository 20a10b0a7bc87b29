"""Convolution without a convolution: what lies under each window of a map, and the weights as one matrix."""

from dataclasses import dataclass, field

import numpy as np

from export import graph as g
from export.onnx_builder import Builder


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Gathers what windows read of maps [., H*W, C]."""

    builder: Builder
    known: dict[str, str] = field(default_factory=dict)
    """Tables of places by geometry; layers share them."""

    def under(
        self,
        node: g.Node,
        tensor: str,
        inside: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> str:
        """What lies under each window of a node, [., H*W, kH*kW, C], zeros outside; the map read is `inside` large."""
        op, constant, name = self.builder.op, self.builder.constant, node.name
        if any(padding):  # one zero at the end serves all places outside
            tensor = op("Pad", [tensor, constant("pads/end", [0, 0, 0, 0, 1, 0])], f"{name}/padded")
        size = (node.shape[1], node.shape[2])
        where = self.places(inside, size, kernel, stride, padding)
        return op("Gather", [tensor, where], f"{name}/under", axis=1)

    def places(
        self,
        inside: tuple[int, int],
        size: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> str:
        """Where the values under each window stand, int32 [H*W, kH*kW]; H*W of the map that is read for one outside.

        Runtimes compute it when they load the model: the file holds what a row and a column add.
        """
        (h, w), (kh, kw), (sh, sw), (ph, pw) = inside, kernel, stride, padding  # which say how many windows there are
        key = f"{h}x{w}/k{kh}x{kw}/s{sh}x{sw}/p{ph}x{pw}"
        if key not in self.known:
            op, constant = self.builder.op, self.builder.constant
            area = inside[0] * inside[1]
            rows, columns = (
                np.arange(size[i])[:, None] * stride[i] + np.arange(kernel[i]) - padding[i] for i in range(2)
            )
            rows = np.where((rows >= 0) & (rows < inside[0]), rows * inside[1], area).astype(np.int32)
            columns = np.where((columns >= 0) & (columns < inside[1]), columns, area).astype(np.int32)
            parts = [
                constant(f"places/{key}/rows", rows[:, None, :, None]),
                constant(f"places/{key}/columns", columns[None, :, None, :]),
            ]
            sums = op("Add", parts, f"places/{key}/sums")
            near = op("Min", [sums, constant(f"places/outside/{area}", np.array(area, np.int32))], f"places/{key}/near")
            shape = constant(f"places/{key}/shape", [size[0] * size[1], kernel[0] * kernel[1]])
            self.known[key] = op("Reshape", [near, shape], f"places/{key}")
        return self.known[key]


def is_identity(node: g.Conv | g.Dense) -> bool:
    """Whether each input has one synapse, to the output of the same place."""
    if isinstance(node, g.Dense):
        weight = node.weight
        return weight.shape[0] == weight.shape[1] and not (weight - np.diag(np.diag(weight))).any()
    alone = node.groups == len(node.weight) and node.weight.shape[1:] == (1, 1, 1)
    return alone and node.stride == (1, 1) and node.padding == (0, 0)


def matrix(node: g.Conv | g.Dense, graph: g.Graph) -> np.ndarray:
    """The weights int8 [inputs, outputs] in the order of channels-last inputs."""
    if isinstance(node, g.Conv):
        groups, (c_out, c_in) = node.groups, node.weight.shape[:2]
        whole = np.zeros((c_out, c_in * groups, *node.weight.shape[2:]), np.int8)
        for k in range(groups):
            rows = slice(k * c_out // groups, (k + 1) * c_out // groups)
            whole[rows, k * c_in : (k + 1) * c_in] = node.weight[rows]
        return np.ascontiguousarray(whole.transpose(2, 3, 1, 0).reshape(-1, c_out))
    source = graph[node.inputs[0]]
    weight = node.weight
    if isinstance(source, g.Flatten):
        weight = weight.reshape(len(weight), *graph[source.inputs[0]].shape)
        weight = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    return np.ascontiguousarray(weight.T.astype(np.int8))
