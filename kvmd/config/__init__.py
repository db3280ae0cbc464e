"""Settings: TOML files, drop-ins and environment become one checked, immutable value."""

from __future__ import annotations

from kvmd.config.loading import DEFAULT_FILE, Described, Loaded, describe, load
from kvmd.config.settings import (
    DirectoryPool,
    InspectorSettings,
    LibvirtPool,
    LogSettings,
    MaintenanceSettings,
    MetricsSettings,
    MqttSettings,
    PolicySettings,
    Settings,
    TransferSettings,
    TrustSettings,
)

__all__ = [
    "DEFAULT_FILE",
    "Described",
    "DirectoryPool",
    "InspectorSettings",
    "LibvirtPool",
    "Loaded",
    "LogSettings",
    "MaintenanceSettings",
    "MetricsSettings",
    "MqttSettings",
    "PolicySettings",
    "Settings",
    "TransferSettings",
    "TrustSettings",
    "describe",
    "load",
]
