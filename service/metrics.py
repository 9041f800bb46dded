"""``/metrics``: figures for Prometheus about requests, jobs, stages, online sessions and GPU memory."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.devices import find_gpus
from service.request_metrics import RequestMetrics

if TYPE_CHECKING:
    from service.server import Server


MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def get_metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    state = request.app.state
    text = await run_in_threadpool(render_metrics, state.server, state.requests)
    return Response(text, media_type=MEDIA_TYPE)


def render_metrics(server: "Server", requests: RequestMetrics) -> str:
    """The figures as text, in Prometheus' exposition format."""
    sessions = server.streams.describe()["streams"]
    latencies = [
        ({"session": session["session"], "quantile": quantile}, 1e-3 * session["latency_ms"][name])
        for session in sessions
        for name, quantile in (("p50", "0.5"), ("p99", "0.99"))
        if session["latency_ms"][name] is not None
    ]
    gpus = [({"gpu": str(k), "name": gpu.name}, float(gpu.memory_used)) for k, gpu in enumerate(find_gpus())]
    totals = requests.totals()
    parts = [
        _lines(
            "accm_requests_total",
            "counter",
            "Requests answered.",
            [(labels, float(count)) for labels, count, _ in totals],
        ),
        _lines(
            "accm_request_seconds_total",
            "counter",
            "Time until the answers to requests began.",
            [(labels, seconds) for labels, _, seconds in totals],
        ),
        _metric("accm_jobs", "gauge", "Jobs by state.", "state", server.jobs.count()),
        _metric(
            "accm_stage_seconds_total",
            "counter",
            "Seconds in each stage.",
            "stage",
            server.jobs.stage_seconds(),
        ),
        _lines("accm_streams", "gauge", "Online sessions.", [({}, float(len(sessions)))]),
        _lines("accm_stream_latency_seconds", "gauge", "From a message to its spikes.", latencies),
        _lines("accm_gpu_memory_used_bytes", "gauge", "Memory of each GPU in use.", gpus),
    ]
    return "".join(parts)


def _metric(name: str, kind: str, text: str, label: str, values: dict[str, int] | dict[str, float]) -> str:
    return _lines(name, kind, text, [({label: key}, float(value)) for key, value in values.items()])


def _lines(name: str, kind: str, text: str, values: Iterable[tuple[dict[str, str], float]]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in values:
        inside = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        lines.append(f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:g}")
    return "\n".join(lines) + "\n"


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


routes = [Route("/metrics", get_metrics, methods=["GET"])]
