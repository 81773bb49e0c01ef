//! Which connections there are, and which one makes room when there are too many.
//!
//! A connection is *waiting* while no request of it is under way: its head has not come, or it idles between two. Nobody loses
//! anything if it ends, so a newcomer takes the place of one that has waited for some seconds: of the peer that has most, the one
//! that has waited longest. Somebody who opens connections and says nothing, however many, keeps nobody out; those who speak at once,
//! however many, are all heard.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A client that has something to say says it by then, also on a machine that two thousand others keep busy: of those one in ten
/// thousand was late after one second (2026-11-29).
const SILENT: Duration = Duration::from_secs(3);

/// If no place has become free for so long, requests hold them all, and the reserve is used.
const STUCK: Duration = Duration::from_secs(1);

/// How often a newcomer looks whether somebody has been silent for long enough.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// All connections of the daemon.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    places: usize,
    /// For connections that find all places taken by requests: health is answered on them, and nothing else.
    reserve: usize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    next: u64,
    connections: HashMap<u64, Entry>,
    /// When a place was last taken or given up.
    moved: Instant,
}

#[derive(Debug)]
struct Entry {
    peer: IpAddr,
    is_reserve: bool,
    requests: usize,
    since: Instant,
    /// Set when it has to make room.
    evicted: CancellationToken,
}

impl Entry {
    fn is_silent(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.since);
        self.requests == 0 && since >= SILENT && !self.evicted.is_cancelled()
    }
}

/// One connection. Its place is free when this is dropped.
#[derive(Debug)]
pub(super) struct SecretLocation {
    table: Arc<ConnectionTable>,
    id: u64,
    pub(super) is_reserve: bool,
    pub(super) evicted: CancellationToken,
}

/// A request that is under way. Ends when this is dropped.
#[derive(Debug)]
pub(super) struct OpenEntry {
    table: Arc<ConnectionTable>,
    id: u64,
}

impl ConnectionTable {
    pub(super) fn new(places: usize, reserve: usize) -> Arc<Self> {
        Arc::new(Self {
            places,
            reserve,
            state: Mutex::new(State {
                next: 0,
                connections: HashMap::new(),
                moved: Instant::now(),
            }),
            freed: Notify::new(),
        })
    }

    /// A place for a new connection, as soon as there is one.
    pub(super) async fn place(self: &Arc<Self>, peer: IpAddr) -> SecretLocation {
        loop {
            let freed = self.freed.notified();
            if let Some(place) = self.take(peer, Instant::now()) {
                return place;
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, freed).await;
        }
    }

    fn take(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Option<SecretLocation> {
        let mut state = self.lock();
        let is_stuck = now.saturating_duration_since(state.moved) >= STUCK;
        let is_reserve = if state.count(false) < self.places || state.evict(false, now) {
            state.moved = now;
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
            peer: network_of(peer),
            is_reserve,
            requests: 0,
            since: now,
            evicted: evicted.clone(),
        };
        state.connections.insert(id, entry);
        Some(SecretLocation {
            table: self.clone(),
            id,
            is_reserve,
            evicted,
        })
    }

    /// Whether others have no place but one that somebody gives up.
    pub(super) fn is_full(&self) -> bool {
        self.lock().count(false) >= self.places
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Those that keep a place. One that was evicted is on its way out.
    fn count(&self, is_reserve: bool) -> usize {
        let connections = self.connections.values();
        connections
            .filter(|it| it.is_reserve == is_reserve && !it.evicted.is_cancelled())
            .count()
    }

    /// Ends one that is silent. `false` where none is.
    fn evict(&mut self, is_reserve: bool, now: Instant) -> bool {
        let mut by_peer: HashMap<IpAddr, usize> = HashMap::new();
        for entry in self.connections.values() {
            *by_peer.entry(entry.peer).or_default() += 1;
        }
        let waiting = self
            .connections
            .values()
            .filter(|it| it.is_reserve == is_reserve && it.is_silent(now));
        let most = |entry: &&Entry| by_peer.get(&entry.peer).copied().unwrap_or_default();
        let victim =
            waiting.max_by(|a, b| most(a).cmp(&most(b)).then_with(|| b.since.cmp(&a.since)));
        match victim {
            Some(entry) => {
                entry.evicted.cancel();
                true
            }
            None => false,
        }
    }
}

impl SecretLocation {
    /// A request has come.
    pub(super) fn begin_request(&self) -> OpenEntry {
        if let Some(entry) = self.table.lock().connections.get_mut(&self.id) {
            entry.requests += 1;
        }
        OpenEntry {
            table: self.table.clone(),
            id: self.id,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.table.is_full()
    }
}

impl Drop for SecretLocation {
    fn drop(&mut self) {
        let mut state = self.table.lock();
        if let Some(entry) = state.connections.remove(&self.id)
            && !entry.is_reserve
        {
            state.moved = Instant::now();
        }
        drop(state);
        self.table.freed.notify_waiters();
    }
}

impl Drop for OpenEntry {
    fn drop(&mut self) {
        if let Some(entry) = self.table.lock().connections.get_mut(&self.id) {
            entry.requests = entry.requests.saturating_sub(1);
            entry.since = Instant::now();
        }
    }
}

/// Somebody with IPv6 has a whole network of addresses.
fn network_of(peer: IpAddr) -> IpAddr {
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
        let one = table.take(peer(2), now).unwrap();
        let many = [now, later].map(|when| table.take(peer(1), when).unwrap());
        assert!(table.is_full());
        // They may be about to say something.
        assert!(table.take(peer(3), later).is_none());
        let new = table.take(peer(3), later + SILENT).unwrap();
        assert!(many[0].evicted.is_cancelled());
        assert!(!many[1].evicted.is_cancelled() && !one.evicted.is_cancelled());
        assert!(!new.is_reserve);
    }

    #[test]
    fn request_under_way_is_never_evicted() {
        let (table, now) = (ConnectionTable::new(2, 1), Instant::now());
        let take = |last, after: Duration| table.take(peer(last), now + after);
        let (a, b) = (
            take(1, Duration::ZERO).unwrap(),
            take(1, Duration::ZERO).unwrap(),
        );
        let (of_a, of_b) = (a.begin_request(), b.begin_request());
        assert!(take(2, STUCK / 2).is_none(), "one may end at any moment");
        let reserve = take(2, STUCK).unwrap();
        assert!(reserve.is_reserve, "health can still be asked for");
        // The reserve, too, makes room for who comes.
        let next = take(2, STUCK + SILENT).unwrap();
        assert!(next.is_reserve && reserve.evicted.is_cancelled());
        let asking = next.begin_request();
        assert!(take(3, STUCK + 2 * SILENT).is_none());
        drop((of_a, asking));
        assert!(!take(3, STUCK + 3 * SILENT).unwrap().is_reserve);
        assert!(a.evicted.is_cancelled() && !b.evicted.is_cancelled());
        drop(of_b);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_peer() {
        let (a, b) = (
            "2001:db8::1".parse().unwrap(),
            "2001:db8::ffff:1".parse().unwrap(),
        );
        assert_eq!(network_of(a), network_of(b));
        assert_ne!(
            network_of(a),
            network_of("2001:db8:0:1::1".parse().unwrap())
        );
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(network_of(mapped), "192.0.2.1".parse::<IpAddr>().unwrap());
    }
}
