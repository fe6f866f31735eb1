"""Maximum flow on small graphs with integer capacities of any size (Dinic's algorithm)."""

from __future__ import annotations

UNLIMITED = None


class FlowGraph:
    """Edges in pairs: edge `e` and its reverse `e ^ 1`; `room` is what an edge can still take.

    An edge without a limit has the room None, its reverse counts what flows.
    """

    def __init__(self, nodes: int) -> None:
        self.edges_of: list[list[int]] = [[] for _ in range(nodes)]
        self.head: list[int] = []
        self.room: list[int | None] = []

    def add_edge(self, tail: int, head: int, limit: int | None) -> int:
        edge = len(self.head)
        self.head += (head, tail)
        self.room += (limit, 0)
        self.edges_of[tail].append(edge)
        self.edges_of[head].append(edge + 1)
        return edge

    def flow(self, edge: int) -> int:
        flow = self.room[edge ^ 1]
        assert flow is not None
        return flow

    def push(self, edge: int, amount: int) -> None:
        for one, change in ((edge, -amount), (edge ^ 1, amount)):
            room = self.room[one]
            if room is not None:
                self.room[one] = room + change

    def close(self, edge: int) -> None:
        """No later flow changes this edge."""
        self.room[edge] = self.room[edge ^ 1] = 0

    def send(self, source: int, sink: int, limit: int | None = UNLIMITED) -> int:
        """Adds the greatest possible flow from source to sink, at most `limit`; returns how much."""
        sent = 0
        while limit is None or sent < limit:
            levels = self.levels(source, sink)
            if levels[sink] < 0:
                break
            nexts = [0] * len(levels)
            while limit is None or sent < limit:
                amount = self._augment(source, sink, None if limit is None else limit - sent, levels, nexts)
                if not amount:
                    break
                sent += amount
        return sent

    def levels(self, source: int, sink: int = -1) -> list[int]:
        """Distance in edges with room from the source, -1 where there is no way, or none as short as to the sink."""
        levels = [-1] * len(self.edges_of)
        levels[source] = 0
        queue = [source]
        for node in queue:
            if sink >= 0 and levels[sink] >= 0:
                break
            for edge in self.edges_of[node]:
                head = self.head[edge]
                if levels[head] < 0 and self.room[edge] != 0:
                    levels[head] = levels[node] + 1
                    queue.append(head)
        return levels

    def _augment(self, source: int, sink: int, limit: int | None, levels: list[int], nexts: list[int]) -> int:
        """One path along the levels; 0 when none is left."""
        path: list[int] = []
        node = source
        while node != sink:
            edges = self.edges_of[node]
            while nexts[node] < len(edges):
                edge = edges[nexts[node]]
                if self.room[edge] != 0 and levels[self.head[edge]] == levels[node] + 1:
                    break
                nexts[node] += 1
            else:
                if not path:
                    return 0
                dead_end = path.pop()
                node = self.head[dead_end ^ 1]
                nexts[node] += 1
                continue
            path.append(edge)
            node = self.head[edge]
        rooms = [room for edge in path if (room := self.room[edge]) is not None]
        amount = min(rooms if limit is None else [*rooms, limit])
        for edge in path:
            self.push(edge, amount)
        return amount
