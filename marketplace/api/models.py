"""Stored answers of requests that carried an Idempotency-Key."""

from __future__ import annotations

from django.db import models

from marketplace.accounts.models import Organization
from marketplace.ids import uuid7


class IdempotencyRecord(models.Model):
    """One (organization, key): what was asked, and, once done, the byte-identical answer."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=255)
    method_path = models.CharField(max_length=300)
    body_sha256 = models.BinaryField(max_length=32)
    response_status = models.PositiveSmallIntegerField(null=True)
    response_body = models.BinaryField(null=True)
    response_content_type = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField()
    locked_until = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["organization", "key"], name="api_idempotency_key_unique"),
        ]
