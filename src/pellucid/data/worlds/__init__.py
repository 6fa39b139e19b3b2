"""Every world with known answers.

To add one: a file with its config and its world, one line in ``WORLDS`` and in ``WorldConfig``.
"""

from pellucid.core.errors import ConfigError, nearest
from pellucid.data.worlds.superposition import FORMS, SuperpositionConfig
from pellucid.data.worlds.teacher import TeacherConfig
from pellucid.data.worlds.world import World, WorldRows

WorldConfig = SuperpositionConfig | TeacherConfig

WORLDS: tuple[type[WorldConfig], ...] = (SuperpositionConfig, TeacherConfig)

__all__ = ["FORMS", "WORLDS", "World", "WorldConfig", "WorldRows", "named_worlds"]


def named_worlds(name: str) -> dict[str, WorldConfig]:
    """The configs that a name stands for: one form, the teacher, or all forms of superposition."""
    single: dict[str, WorldConfig] = {**FORMS, "teacher": TeacherConfig()}
    if name in single:
        return {name: single[name]}
    if name == "superposition":
        return dict(FORMS)
    raise ConfigError(f"world: found {name!r}; {nearest(name, [*single, 'superposition'])}")
