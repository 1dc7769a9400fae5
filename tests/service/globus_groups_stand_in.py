"""The part of :mod:`tests.service.globus_stand_in` about people: identities, groups, access rules of collections."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from globus_sdk.testing import get_response_set

_GROUP = get_response_set("groups.create_group").lookup("default").json
_IDENTITY = get_response_set("auth.get_identities").lookup("sirosen").json["identities"][0]

Answer = tuple[int, dict[str, str], Any]


@dataclass
class Group:
    """A group. :param members: identity id -> role, status."""

    document: dict[str, Any]
    members: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def roles(self) -> dict[str, str]:
        return {one: role for one, (role, _) in self.members.items()}


class GroupsStandIn:
    """Answers what it knows.

    :param client: id of the application, which is the first administrator of every group.
    """

    def __init__(self, client: str) -> None:
        self.client = client
        self.identities: dict[str, str] = {}  # name -> id
        self.unaddable: set[str] = set()  # identity ids that can only be invited
        self.groups: dict[str, Group] = {}
        self.rules: dict[str, dict[str, dict[str, Any]]] = {}  # collection -> rule id -> rule

    def know(self, *names: str) -> None:
        """Let these people have identities."""
        for name in names:
            self.identities[name] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))

    def members(self, group_id: str) -> dict[str, str]:
        """Return name -> role of a group's members, without the application."""
        names = {number: name for name, number in self.identities.items()}
        return {names.get(one, one): role for one, role in self.groups[group_id].roles.items() if one != self.client}

    def readers(self, collection: str) -> dict[str, str]:
        """Return path -> group id of a collection's rules."""
        return {rule["path"]: rule["principal"] for rule in self.rules.get(collection, {}).values()}

    def answer(self, line: str, query: dict[str, list[str]], body: dict[str, Any]) -> Answer | None:
        if line == "GET /v2/api/identities":
            return self._identities(query)
        if line == "GET /v2/groups/my_groups":
            return 200, {}, [self._mine(group) for group in self.groups.values() if self.client in group.members]
        if line == "POST /v2/groups":
            number = str(uuid.uuid4())
            self.groups[number] = Group({**_GROUP, **body, "id": number}, {self.client: ("admin", "active")})
            return 201, {}, self.groups[number].document
        if match := re.fullmatch(r"(\w+) /v2/groups/([0-9a-f-]+)", line):
            return self._group(match[1], match[2], query, body)
        if match := re.fullmatch(r"(\w+) /v0\.10/endpoint/([0-9a-f-]+)/access(_list)?(?:/([0-9a-f-]+))?", line):
            return self._access(match[1], match[2], match[4], body)
        return None

    def _mine(self, group: Group) -> dict[str, Any]:
        role, status = group.members[self.client]
        mine = {"group_id": group.document["id"], "identity_id": self.client, "role": role, "status": status}
        return {**group.document, "my_memberships": [mine]}

    def strange(self, description: str, mine: tuple[str, str], parent: str | None = None) -> str:
        """Let a stranger make a group with the application in it; return its id."""
        number = str(uuid.uuid4())
        document = {**_GROUP, "id": number, "name": "x", "description": description, "parent_id": parent}
        self.groups[number] = Group(document, {str(uuid.uuid4()): ("admin", "active"), self.client: mine})
        return number

    def _identities(self, query: dict[str, list[str]]) -> Answer:
        names = query["usernames"][0].split(",")
        if query.get("provision", ["false"])[0].lower() == "true":
            self.know(*(name for name in names if name not in self.identities))
        found = [
            {**_IDENTITY, "username": name, "id": self.identities[name]} for name in names if name in self.identities
        ]
        return 200, {}, {"identities": found}

    def _group(self, method: str, number: str, query: dict[str, list[str]], body: dict[str, Any]) -> Answer:
        group = self.groups.get(number)
        if group is None:
            return refusal(404, "GroupNotFound", "No such group")
        if method == "DELETE":
            del self.groups[number]
            return 200, {}, group.document
        if method == "GET":
            assert query["include"] == ["memberships"]
            memberships = [
                {"group_id": number, "identity_id": one, "username": one, "role": role, "status": status}
                for one, (role, status) in group.members.items()
            ]
            return 200, {}, {**group.document, "memberships": memberships}
        return self._change(group, body)

    def _change(self, group: Group, body: dict[str, Any]) -> Answer:
        errors: dict[str, list[dict[str, str]]] = {}
        for word, items in body.items():
            for item in items:
                one = item["identity_id"]
                if word == "remove":
                    group.members.pop(one)
                elif word == "add" and one in self.unaddable:
                    errors.setdefault("add", []).append({"identity_id": one, "code": "ADD_NOT_ALLOWED", "detail": "no"})
                else:
                    status = "invited" if word == "invite" else "active"
                    group.members[one] = item["role"], status
        return 200, {}, {"errors": errors} if errors else {}

    def _access(self, method: str, collection: str, rule_id: str | None, body: dict[str, Any]) -> Answer:
        rules = self.rules.setdefault(collection, {})
        if method == "GET":
            return 200, {}, {"DATA_TYPE": "access_list", "DATA": [{"id": one, **rule} for one, rule in rules.items()]}
        if method == "DELETE":
            if rules.pop(rule_id or "", None) is None:
                return refusal(404, "AccessRuleNotFound", "No such rule")
            return 200, {}, {"DATA_TYPE": "result", "code": "Deleted"}
        if any((rule["principal"], rule["path"]) == (body["principal"], body["path"]) for rule in rules.values()):
            return refusal(409, "Exists", "There is such a rule")
        number = str(uuid.uuid4())
        rules[number] = body
        return 201, {}, {"DATA_TYPE": "access_create_result", "code": "Created", "access_id": number}


def refusal(status: int, code: str, message: str) -> Answer:
    return status, {}, {"code": code, "message": message, "request_id": "r", "resource": "/"}
