"""The embedded Dask cluster leaves the process that it is in to others."""

from service.cluster import Cluster
from service.settings import read_settings

MOST_CALLS = 20
"""A second, of all that Dask does by itself; by its defaults it is more than 200."""


def test_an_idle_cluster_hardly_does_anything(tmp_path):
    cluster = Cluster(read_settings({"ACCM_DATA": str(tmp_path), "ACCM_DEVICE": "cpu"}), lambda event: None)
    try:
        servers = [cluster._own.scheduler, *cluster._own.workers.values()]
        callbacks = [callback for server in servers for callback in server.periodic_callbacks.values()]
        assert len(servers) == 2
        assert sum(1000 / callback.callback_time for callback in callbacks) < MOST_CALLS
    finally:
        cluster.close()
