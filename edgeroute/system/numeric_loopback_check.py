"""Network addresses of this device itself."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(address: str) -> bool:
    """Return True if a numeric address belongs to this device alone: 127.0.0.0/8, ::1, and the former mapped into IPv6.

    False for a name.
    """
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
