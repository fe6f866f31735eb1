"""No key reaches beyond its own scopes by way of a person it makes."""

from __future__ import annotations


