"""The engines that options with several replicas ask for, as one."""

from __future__ import annotations

import structlog

from mtgr.requests import ModelInfo
from mtgr.serving.engine import RecommendationEngine
from mtgr.serving.options import EngineOptions, replica_options
from mtgr.serving.replicas import Replicas, all_of

log = structlog.get_logger(__name__)


class ReplicatedEngine(Replicas[RecommendationEngine]):
    """The replicas that options ask for, for `mtgr.serving.server.EngineServer` to keep alive."""

    def __init__(self, options: EngineOptions) -> None:
        """InputError as `RecommendationEngine` raises it."""
        super().__init__([RecommendationEngine(one) for one in replica_options(options)])

    @property
    def failed(self) -> bool:
        """Whether a started engine has broken; `start` then starts that one again."""
        return any(replica.failed for replica in self.replicas)

    async def start(self) -> ModelInfo:
        """Start those that do not serve; the others go on, with what they have cached."""
        missing = [replica for replica in self.replicas if replica.failed or not replica.process_ids]
        if len(missing) < len(self.replicas):
            log.info("replicas_restart", replicas=len(missing), of=len(self.replicas))
        infos = await all_of([replica.start() for replica in missing or self.replicas])
        return infos[0]
