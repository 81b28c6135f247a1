"""Trial stores to run one suite over: a local disk, memory:// as it is and as one that renames, S3 over HTTP."""

import io
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from oneshot.store.store import Store

KINDS = ("disk", "renaming", "memory", "s3")


class Renaming(MemoryFileSystem):
    """A store that is neither a disk nor known to put files whole."""

    protocol = "renaming"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = MemoryFileSystem._strip_protocol(path.removeprefix("renaming://"))
        return stripped


def one_at_a_time(app: Callable[..., Any]) -> Callable[..., Any]:
    """moto answers a conditional put in two moves, between which another request may come; S3 does not."""
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        # first the whole request: its sender may stop in the middle of it
        length = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with lock:
            return app(environ, start_response)

    return answer


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """moto's server, in this process."""
    serving = pytest.importorskip("werkzeug.serving", reason="no S3 to test with: pip install -e '.[dev]'")
    app = pytest.importorskip("moto.moto_server.werkzeug_app", reason="no S3 to test with: pip install -e '.[dev]'")
    pytest.importorskip("s3fs", reason="no S3 to test with: pip install -e '.[dev]'")
    server = serving.make_server(
        "127.0.0.1",
        0,
        one_at_a_time(app.DomainDispatcherApplication(app.create_backend_app)),
        threaded=True,
        request_handler=app.MotoRequestHandler,
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, which this process and its children can write."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    url = f"s3://bucket-{uuid.uuid4().hex[:8]}"
    fsspec.filesystem("s3").mkdir(url)
    return url


@pytest.fixture(params=KINDS)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty store."""
    if request.param == "disk":
        yield str(tmp_path / "runs")
    elif request.param in ("memory", "renaming"):
        fsspec.register_implementation("renaming", Renaming, clobber=True)
        yield f"{request.param}://{tmp_path}/runs"
        fsspec.filesystem("memory").rm("/", recursive=True)
    else:
        yield f"{request.getfixturevalue('s3_bucket')}/runs"


@pytest.fixture
def store(root: str) -> Store:
    return Store(root)
