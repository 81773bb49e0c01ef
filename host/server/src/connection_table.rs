//! The table of open connections. It decides which one is evicted if there are too many.
//!
//! A connection is *waiting* while it has no active request: its head has not arrived, or it idles between two requests. Ending it
//! loses nothing, so a new connection takes the slot of a connection that has waited for some seconds: from the peer with the most
//! connections, the one that has waited longest. So a client that opens many connections and sends nothing locks nobody out, and
//! all clients that send at once are served.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The time in which a client sends its request, also on a machine that two thousand other clients keep busy: one in ten thousand
/// of those was late after one second (2026-11-29).
const SILENT_MIN: Duration = Duration::from_secs(3);

/// If no slot has become free for this long, requests hold all of them, and the table uses the reserve.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// How often a new connection checks whether another has been silent for long enough.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// All connections of the daemon.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    slots: usize,
    /// Slots for new connections while requests hold all others. They serve health checks only.
    reserve: usize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    next: u64,
    connections: HashMap<u64, Entry>,
    /// The time of the last change of the slots.
    last_change: Instant,
}

#[derive(Debug)]
struct Entry {
    peer: IpAddr,
    is_reserve: bool,
    requests: usize,
    since: Instant,
    /// Cancelled when the connection is evicted.
    evicted: CancellationToken,
}

impl Entry {
    fn is_silent(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.since);
        self.requests == 0 && since >= SILENT_MIN && !self.evicted.is_cancelled()
    }
}

/// One connection. Dropping this frees its slot.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    table: Arc<ConnectionTable>,
    id: u64,
    pub(super) is_reserve: bool,
    pub(super) evicted: CancellationToken,
}

/// An active request. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct ActiveRequest {
    table: Arc<ConnectionTable>,
    id: u64,
}

impl ConnectionTable {
    pub(super) fn new(slots: usize, reserve: usize) -> Arc<Self> {
        Arc::new(Self {
            slots,
            reserve,
            state: Mutex::new(State {
                next: 0,
                connections: HashMap::new(),
                last_change: Instant::now(),
            }),
            freed: Notify::new(),
        })
    }

    /// Take a slot for a new connection as soon as there is one.
    pub(super) async fn acquire_slot(self: &Arc<Self>, peer: IpAddr) -> ConnectionSlot {
        loop {
            let freed = self.freed.notified();
            if let Some(slot) = self.try_acquire(peer, Instant::now()) {
                return slot;
            }
            let _ = tokio::time::timeout(CHECK_INTERVAL, freed).await;
        }
    }

    fn try_acquire(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Option<ConnectionSlot> {
        let mut state = self.lock();
        let is_stuck = now.saturating_duration_since(state.last_change) >= STUCK_AFTER;
        let is_reserve = if state.count(false) < self.slots || state.evict(false, now) {
            state.last_change = now;
            false
        } else if is_stuck && (state.count(true) < self.reserve || state.evict(true, now)) {
            true
        } else {
            return None;
        };
        let id = state.next;
        state.next += 1;
        let evicted = CancellationToken::new();
        let entry = Entry {
            peer: peer_network(peer),
            is_reserve,
            requests: 0,
            since: now,
            evicted: evicted.clone(),
        };
        state.connections.insert(id, entry);
        Some(ConnectionSlot {
            table: self.clone(),
            id,
            is_reserve,
            evicted,
        })
    }

    /// Whether a new connection needs another to end.
    pub(super) fn is_full(&self) -> bool {
        self.lock().count(false) >= self.slots
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The connections with a slot. Evicted connections do not count, since they are about to end.
    fn count(&self, is_reserve: bool) -> usize {
        let connections = self.connections.values();
        connections
            .filter(|it| it.is_reserve == is_reserve && !it.evicted.is_cancelled())
            .count()
    }

    /// Evict a silent connection. Returns `false` if there is none.
    fn evict(&mut self, is_reserve: bool, now: Instant) -> bool {
        let mut by_peer: HashMap<IpAddr, usize> = HashMap::new();
        for entry in self.connections.values() {
            *by_peer.entry(entry.peer).or_default() += 1;
        }
        let waiting = self
            .connections
            .values()
            .filter(|it| it.is_reserve == is_reserve && it.is_silent(now));
        let peer_connections =
            |entry: &&Entry| by_peer.get(&entry.peer).copied().unwrap_or_default();
        let victim = waiting.max_by(|a, b| {
            peer_connections(a)
                .cmp(&peer_connections(b))
                .then_with(|| b.since.cmp(&a.since))
        });
        match victim {
            Some(entry) => {
                entry.evicted.cancel();
                true
            }
            None => false,
        }
    }
}

impl ConnectionSlot {
    /// Count a new request of this connection.
    pub(super) fn begin_request(&self) -> ActiveRequest {
        if let Some(entry) = self.table.lock().connections.get_mut(&self.id) {
            entry.requests += 1;
        }
        ActiveRequest {
            table: self.table.clone(),
            id: self.id,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.table.is_full()
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut state = self.table.lock();
        if let Some(entry) = state.connections.remove(&self.id)
            && !entry.is_reserve
        {
            state.last_change = Instant::now();
        }
        drop(state);
        self.table.freed.notify_waiters();
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if let Some(entry) = self.table.lock().connections.get_mut(&self.id) {
            entry.requests = entry.requests.saturating_sub(1);
            entry.since = Instant::now();
        }
    }
}

/// The peer's address, or its network for IPv6, where one client has a whole network of addresses.
fn peer_network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let mut segments = address.segments();
            segments[4..].fill(0);
            IpAddr::V6(segments.into())
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[test]
    fn newcomer_takes_the_place_of_the_longest_silent_of_the_peer_with_most() {
        let (table, now) = (ConnectionTable::new(3, 1), Instant::now());
        let later = now + Duration::from_millis(1);
        let one = table.try_acquire(peer(2), now).unwrap();
        let many = [now, later].map(|when| table.try_acquire(peer(1), when).unwrap());
        assert!(table.is_full());
        // They may be about to send a request.
        assert!(table.try_acquire(peer(3), later).is_none());
        let new = table.try_acquire(peer(3), later + SILENT_MIN).unwrap();
        assert!(many[0].evicted.is_cancelled());
        assert!(!many[1].evicted.is_cancelled() && !one.evicted.is_cancelled());
        assert!(!new.is_reserve);
    }

    #[test]
    fn request_under_way_is_never_evicted() {
        let (table, now) = (ConnectionTable::new(2, 1), Instant::now());
        let try_acquire = |last, after: Duration| table.try_acquire(peer(last), now + after);
        let (a, b) = (
            try_acquire(1, Duration::ZERO).unwrap(),
            try_acquire(1, Duration::ZERO).unwrap(),
        );
        let (of_a, of_b) = (a.begin_request(), b.begin_request());
        assert!(
            try_acquire(2, STUCK_AFTER / 2).is_none(),
            "one may end at any moment"
        );
        let reserve = try_acquire(2, STUCK_AFTER).unwrap();
        assert!(reserve.is_reserve, "health can still be asked for");
        // The reserve, too, evicts silent connections.
        let next = try_acquire(2, STUCK_AFTER + SILENT_MIN).unwrap();
        assert!(next.is_reserve && reserve.evicted.is_cancelled());
        let asking = next.begin_request();
        assert!(try_acquire(3, STUCK_AFTER + 2 * SILENT_MIN).is_none());
        drop((of_a, asking));
        assert!(
            !try_acquire(3, STUCK_AFTER + 3 * SILENT_MIN)
                .unwrap()
                .is_reserve
        );
        assert!(a.evicted.is_cancelled() && !b.evicted.is_cancelled());
        drop(of_b);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_peer() {
        let (a, b) = (
            "2001:db8::1".parse().unwrap(),
            "2001:db8::ffff:1".parse().unwrap(),
        );
        assert_eq!(peer_network(a), peer_network(b));
        assert_ne!(
            peer_network(a),
            peer_network("2001:db8:0:1::1".parse().unwrap())
        );
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(peer_network(mapped), "192.0.2.1".parse::<IpAddr>().unwrap());
    }
}
