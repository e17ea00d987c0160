"""Lifecycle rules of S3: each retention class expires by itself.

obstore cannot set them: this takes boto3, once, by whoever may change a bucket (`trifle-otel
setup`). The rules are also given as plain data, to be put by another tool.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from trifle_otel.errors import ConfigurationError, MissingDependency, StoreUnavailable
from trifle_otel.stores.object_urls import DEFAULT_PREFIX, ObjectLocation

LONGEST = 2**31 - 1  # days, S3's own bound

_Rule = dict[str, Any]


def rules(days: Iterable[int], prefix: str = DEFAULT_PREFIX) -> list[_Rule]:
    """A rule for each number of days, ascending. Raises `ConfigurationError` for days below 1."""
    classes = sorted(set(days))
    for each in classes:
        if not 1 <= each <= LONGEST:
            raise ConfigurationError(f"payloads cannot expire after {each} days; from 1 on they can")
    return [
        {
            "ID": f"trifle-traces-{each}d",
            "Filter": {"Prefix": f"{each}/{prefix}/"},
            "Status": "Enabled",
            "Expiration": {"Days": each},
        }
        for each in classes
    ]


def put_rules(location: ObjectLocation, days: Iterable[int]) -> None:
    """Put the rules of these classes on each bucket, beside those that are there.

    Raises `MissingDependency` without boto3, `ConfigurationError` where the store refuses or is no S3,
    `StoreUnavailable` where it is out of reach.
    """
    ours = rules(days, location.prefix)
    if location.scheme != "s3":
        prefixes = ", ".join(f"{rule['Filter']['Prefix']} after {rule['Expiration']['Days']} days" for rule in ours)
        raise ConfigurationError(f"{location.scheme}: has other rules; let its own tool expire {prefixes}")
    client = _client(location)
    for bucket in location.buckets:
        try:
            _put(client, bucket, ours)
        except Exception as error:
            failure = _translated(error, bucket)
        else:
            continue
        raise failure


def merged(there: list[_Rule], ours: Iterable[_Rule]) -> list[_Rule]:
    """A bucket's rules with ours among them; equal to `there` where nothing is missing.

    Another archive in the same bucket has other prefixes under the same ids: then our id gets the prefix added.
    """
    result = list(there)
    for rule in ours:
        prefix = _prefix(rule)
        same = [at for at, other in enumerate(result) if _is_ours(other) and _prefix(other) == prefix]
        if not same:
            ids = {other.get("ID") for other in result}
            name = rule["ID"] if rule["ID"] not in ids else f"{rule['ID']}-{re.sub('[^A-Za-z0-9]+', '-', prefix)}"[:255]
            result.append({**_in_the_form_of(there, rule), "ID": name})
        elif any(result[same[0]].get(field) != rule[field] for field in ("Status", "Expiration")):
            result[same[0]] = {**result[same[0]], "Status": rule["Status"], "Expiration": rule["Expiration"]}
    return result


def _is_ours(rule: Mapping[str, Any]) -> bool:
    return str(rule.get("ID", "")).startswith("trifle-traces-")


def _prefix(rule: Mapping[str, Any]) -> str:
    return str(rule.get("Filter", rule).get("Prefix", ""))


def _in_the_form_of(there: Iterable[_Rule], rule: _Rule) -> _Rule:
    """S3 refuses to mix rules of the older form, which have their prefix outside a filter, with others."""
    if any("Prefix" in other for other in there):
        return {**{name: value for name, value in rule.items() if name != "Filter"}, "Prefix": _prefix(rule)}
    return rule


def _client(location: ObjectLocation) -> Any:
    try:
        boto3 = importlib.import_module("boto3")
        config = importlib.import_module("botocore.config").Config
    except ImportError as error:
        raise MissingDependency("lifecycle rules need boto3: pip install 'trifle-otel[s3-setup]'") from error
    path_style = location.path_style if location.path_style is not None else location.endpoint is not None
    options = config(
        connect_timeout=5,
        read_timeout=30,
        retries={"max_attempts": 2},
        s3={"addressing_style": "path" if path_style else "auto"},
    )
    try:
        return boto3.client("s3", endpoint_url=location.endpoint, region_name=location.region, config=options)
    except Exception as error:  # no region, an endpoint that is none: botocore has a class for each
        raise ConfigurationError(f"boto3 cannot reach {location.url}: {type(error).__name__}") from error


def _put(client: Any, bucket: str, ours: list[_Rule]) -> None:
    try:
        answer = client.get_bucket_lifecycle_configuration(Bucket=bucket)
    except client.exceptions.ClientError as error:
        if error.response["Error"].get("Code") != "NoSuchLifecycleConfiguration":
            raise
        answer = {}
    there = answer.get("Rules", [])
    wanted = merged(there, ours)
    if wanted == there:
        return
    kept = {name: answer[name] for name in ("TransitionDefaultMinimumObjectSize",) if name in answer}
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": wanted}, **kept)


def _translated(error: Exception, bucket: str) -> Exception:
    response = getattr(error, "response", None)
    what = f"the lifecycle rules of s3://{bucket}"
    if isinstance(response, dict):
        code = response.get("Error", {}).get("Code", "")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        kind = StoreUnavailable if status >= 500 or code in ("SlowDown", "ExpiredToken") else ConfigurationError
        return kind(f"{what} cannot be changed: {code or status}")
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return ConfigurationError(f"{what} cannot be changed: boto3 found no credentials")
    return StoreUnavailable(f"{what} cannot be reached: {type(error).__name__}")
