"""Two processes and a socket: one trains and sends bytes, the other decodes and applies them.

The server knows nothing of the defence and has no part of the client's memory. What passes
between them is a length and that many bytes: once the model and a public test set, then in every
round the defended gradient.
"""

import socket
import struct
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

from gradguard import wire

ROUNDS, RATE = 200, 0.5
MOST_BYTES = 2**20  # what a receiver lets a sender take of its memory, per message
SECONDS = 60.0  # within which a message must be there, however many pieces it comes in
LENGTH = struct.Struct(">Q")


def send(stream: socket.socket, data: bytes) -> None:
    stream.sendall(LENGTH.pack(len(data)) + data)


def receive(stream: socket.socket) -> bytes:
    deadline = time.monotonic() + SECONDS
    (size,) = LENGTH.unpack(read_exactly(stream, LENGTH.size, deadline))
    if size > MOST_BYTES:  # before any of it is read: so far the length is only a claim
        raise wire.WireError(f"expected at most {MOST_BYTES} bytes, the sender announces {size}")
    return read_exactly(stream, size, deadline)


def read_exactly(stream: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        # A timeout of the socket's is for one piece, and a slow sender could send a byte a minute.
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"expected {size} bytes in time, got {len(data)}")
        stream.settimeout(left)
        part = stream.recv(size - len(data))
        if not part:
            raise ConnectionError(f"expected {size} bytes, the sender stopped after {len(data)}")
        data += part
    return bytes(data)


def new_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def serve(stream: socket.socket) -> None:
    model = new_model()
    images, labels = begin(wire.decode(receive(stream), max_bytes=MOST_BYTES), model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    dense, received = 4 * sum(p.numel() for p in model.parameters()), 0
    for number in range(1, ROUNDS + 1):
        data = receive(stream)
        apply(wire.decode(data, max_bytes=MOST_BYTES), model, optimizer)
        received += len(data)
        if number in (1, 2, 10, 100, ROUNDS):
            share = dense / len(data)
            print(f"round {number:3}: {len(data):4} bytes, dense {dense}, {share:.0f} times less")
    accuracy = (model(images).argmax(dim=1) == labels).float().mean()
    print(f"{received} bytes in {ROUNDS} rounds, {ROUNDS * dense / received:.0f} times less")
    print(f"accuracy {accuracy:.2f}")


def begin(start: dict[str, Tensor], model: nn.Module) -> tuple[Tensor, Tensor]:
    """Load the first message into the model; its test set, if it is one."""
    none = torch.empty(0)
    images, labels = start.pop("test.images", none), start.pop("test.labels", none)
    check_like(start, model.state_dict())
    if images.dtype != torch.float32 or images.ndim != 2 or images.shape[1] != 64:
        raise wire.WireError("expected test images of 64 pixels in float32")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise wire.WireError("expected an int64 label for each test image")
    model.load_state_dict(start)
    return images, labels


def check_like(message: dict[str, Tensor], model: dict[str, Tensor]) -> None:
    # The bytes are well-formed, which says nothing of the tensors in them.
    expected = {name: (part.shape, part.dtype) for name, part in model.items()}
    if {name: (part.shape, part.dtype) for name, part in message.items()} != expected:
        raise wire.WireError("expected one tensor for each parameter of the model, of its shape")
    if not all(bool(part.isfinite().all()) for part in message.values()):
        raise wire.WireError("expected finite numbers")


def apply(message: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    check_like(message, dict(model.named_parameters()))
    for name, p in model.named_parameters():
        p.grad = message[name]
    optimizer.step()


def train(stream: socket.socket) -> None:
    from sklearn.datasets import load_digits

    from gradguard import ErrorFeedback, KeepTopK, guard

    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images, train, test = images.float() / 16, slice(1400), slice(1400, None)
    model = new_model()
    plain = torch.optim.SGD(model.parameters(), lr=RATE)
    optimizer = guard(plain, ErrorFeedback(KeepTopK(0.01)), model=model)
    public = {"test.images": images[test], "test.labels": labels[test]}
    send(stream, wire.encode({**public, **model.state_dict()}))
    for _ in range(ROUNDS):
        batch = torch.randint(1400, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[train][batch]), labels[batch]).backward()
        send(stream, wire.encode(optimizer.release()))
        optimizer.step()  # with what was released, as the server does


def main() -> None:
    if sys.argv[1:2] == ["client"]:
        with socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=60) as stream:
            train(stream)
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:  # any free port
        listener.settimeout(60)
        port = str(listener.getsockname()[1])
        with subprocess.Popen([sys.executable, __file__, "client", port]) as client:
            try:
                stream, _ = listener.accept()
                with stream:
                    serve(stream)
            except (wire.WireError, OSError) as error:
                sys.exit(f"the client was refused: {error}")
            finally:
                client.terminate()


if __name__ == "__main__":
    main()
