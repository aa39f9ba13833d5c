"""Buffers used in turn, through which batches reach the device: in one copy each, beside what it computes.

On a GPU the buffers are pinned and the copies run on a stream of their own. A buffer is written again when its last
copy has left it, so that nothing is allocated once the largest batch was seen, and the host never waits for the step.
On the CPU the copy is an ordinary one: the same code, for tests; nobody needs it there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 64  # bytes at which every tensor begins


class Ring:
    """Moves host tensors to a device.

    Args:
        slots: buffers; as many batches may be on their way at a time.
    """

    def __init__(self, device: torch.device, slots: int) -> None:
        self.device, self.turn = device, 0
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.slots = [_Slot(pinned=self.stream is not None) for _ in range(slots)]

    def move(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same values on the device, in one allocation; work that is enqueued from now on waits for them."""
        places, total = [], 0
        for tensor in tensors:
            places.append(slice(total, total + tensor.nbytes))
            total += -(-tensor.nbytes // ALIGNED) * ALIGNED
        slot = self.slots[self.turn]
        self.turn = (self.turn + 1) % len(self.slots)
        buffer = slot.room(total)
        for tensor, place in zip(tensors, places, strict=True):
            buffer[place].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        arrived = self._copied(slot, buffer)
        return [
            arrived[place].view(tensor.dtype).view(tensor.shape) for tensor, place in zip(tensors, places, strict=True)
        ]

    def _copied(self, slot: _Slot, buffer: Tensor) -> Tensor:
        if self.stream is None:
            return buffer.clone()
        with torch.cuda.stream(self.stream):
            arrived = torch.empty_like(buffer, device=self.device)
            arrived.copy_(buffer, non_blocking=True)
            slot.left = self.stream.record_event()
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(slot.left)
        arrived.record_stream(computing)  # or its memory would be given to the next copy while it is being read
        return arrived


class _Slot:
    """One buffer, and the event after which it may be written again."""

    def __init__(self, pinned: bool) -> None:
        self.pinned, self.left, self.bytes = pinned, None, torch.empty(0, dtype=torch.uint8)

    left: torch.cuda.Event | None

    def room(self, size: int) -> Tensor:
        """The first `size` bytes, when nobody reads them any more; grows by half at least."""
        if self.left is not None:
            self.left.synchronize()
        if self.bytes.numel() < size:
            grown = max(size, self.bytes.numel() * 3 // 2)
            self.bytes = torch.empty(grown, dtype=torch.uint8, pin_memory=self.pinned)
        return self.bytes[:size]
