//! Who depends on whom, and therefore the order: a provider is recreated before its dependents. Pure, and indifferent to what the
//! numbers stand for.

use std::collections::VecDeque;

/// For each its level: 0 for what depends on nothing, and otherwise one more than the highest level that it depends on.
///
/// `depends_on` has for each the places of those that it depends on; places that are not there, and itself, do not count. Where
/// some depend on each other in a circle, the lowest of them does not wait for the others; the second part of the answer names
/// those. Steps and not calls, so that a long chain does not need a deep stack.
pub fn levels(depends_on: &[Vec<usize>]) -> (Vec<usize>, Vec<usize>) {
    let all = depends_on.len();
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); all];
    let mut waits_for = vec![0_usize; all];
    for (at, to) in edges(depends_on) {
        dependents[to].push(at);
        waits_for[at] += 1;
    }
    let mut level = vec![0; all];
    let mut is_placed = vec![false; all];
    let mut early = Vec::new();
    let mut ready: VecDeque<usize> = (0..all).filter(|&at| waits_for[at] == 0).collect();
    loop {
        while let Some(at) = ready.pop_front() {
            is_placed[at] = true;
            for &dependent in &dependents[at] {
                if is_placed[dependent] {
                    continue;
                }
                level[dependent] = level[dependent].max(level[at] + 1);
                waits_for[dependent] -= 1;
                if waits_for[dependent] == 0 {
                    ready.push_back(dependent);
                }
            }
        }
        let Some(stuck) = is_placed.iter().position(|placed| !placed) else {
            return (level, early);
        };
        let first = lowest_of_circle(depends_on, &is_placed, stuck);
        early.push(first);
        ready.push_back(first);
    }
}

fn edges(depends_on: &[Vec<usize>]) -> impl Iterator<Item = (usize, usize)> {
    let all = depends_on.len();
    let of = move |(at, list): (usize, &Vec<usize>)| {
        let there = list.iter().copied().filter(move |&to| to != at && to < all);
        there.map(move |to| (at, to)).collect::<Vec<_>>()
    };
    depends_on.iter().enumerate().flat_map(of)
}

/// Whoever is stuck waits for somebody who is stuck, so that going from one to the next must come round.
fn lowest_of_circle(depends_on: &[Vec<usize>], is_placed: &[bool], stuck: usize) -> usize {
    let mut way = vec![stuck];
    let mut place_on_way = vec![None; depends_on.len()];
    place_on_way[stuck] = Some(0);
    let mut at = stuck;
    loop {
        let next = depends_on[at]
            .iter()
            .copied()
            .find(|&to| to != at && is_placed.get(to) == Some(&false));
        // There is one, or it would not be stuck; if there were none, it is its own circle.
        let Some(next) = next else { return at };
        if let Some(begin) = place_on_way[next] {
            return way[begin..].iter().copied().min().unwrap_or(next);
        }
        place_on_way[next] = Some(way.len());
        way.push(next);
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(depends_on: &[&[usize]], expected: &[usize], expected_breaks: &[usize]) {
        let depends_on: Vec<Vec<usize>> = depends_on.iter().map(|list| list.to_vec()).collect();
        let (levels, breaks) = levels(&depends_on);
        assert_eq!(levels, expected, "levels of {depends_on:?}");
        assert_eq!(breaks, expected_breaks, "circles of {depends_on:?}");
    }

    #[test]
    fn a_provider_comes_before_its_dependents() {
        check(&[], &[], &[]);
        check(&[&[], &[], &[]], &[0, 0, 0], &[]);
        // A chain, in either direction.
        check(&[&[], &[0], &[1]], &[0, 1, 2], &[]);
        check(&[&[1], &[2], &[]], &[2, 1, 0], &[]);
        // A diamond with a short and a long side.
        check(&[&[], &[0], &[1], &[0, 2]], &[0, 1, 2, 3], &[]);
        check(&[&[1, 3], &[2], &[3], &[]], &[3, 2, 1, 0], &[]);
    }

    #[test]
    fn what_is_not_there_and_itself_do_not_count() {
        check(&[&[0], &[7, 1]], &[0, 0], &[]);
        check(&[&[1, 1], &[]], &[1, 0], &[]);
    }

    #[test]
    fn in_a_circle_the_first_by_name_does_not_wait() {
        check(&[&[1], &[0]], &[0, 1], &[0]);
        check(&[&[1], &[2], &[0]], &[0, 2, 1], &[0]);
        // One that only depends on a circle comes after it.
        check(&[&[2], &[2], &[1]], &[2, 0, 1], &[1]);
        // Two circles with a member in common.
        let (levels, breaks) = levels(&[vec![1, 2], vec![0], vec![0]]);
        assert_eq!((levels, breaks), (vec![0, 1, 1], vec![0]));
    }

    #[test]
    fn a_chain_as_long_as_a_machine_can_hold_ends() {
        const LONG: usize = 20_000;
        let chain: Vec<Vec<usize>> = (0..LONG).map(|at| vec![at + 1]).collect();
        let (levels, breaks) = levels(&chain);
        assert_eq!(levels[0], LONG - 1);
        assert!(breaks.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn whatever_depends_on_whatever_it_ends_and_the_order_holds_but_for_circles(
            depends_on in proptest::collection::vec(proptest::collection::vec(0_usize..12, 0..4), 0..10),
        ) {
            let (levels, breaks) = levels(&depends_on);
            proptest::prop_assert_eq!(levels.len(), depends_on.len());
            for (at, list) in depends_on.iter().enumerate() {
                for &to in list.iter().filter(|&&to| to != at && to < depends_on.len()) {
                    proptest::prop_assert!(
                        levels[at] > levels[to] || breaks.contains(&at),
                        "{} on {}: {:?}, circles {:?}", at, to, levels, breaks
                    );
                }
            }
        }
    }
}
