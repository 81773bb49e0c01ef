//! What replacing many containers costs: Refit's strategies beside the order of calls of other updaters, on a real engine.
//!
//! Read in this order: [`fleet`] is the scenario, [`order`] the ways of bringing it up to date, [`table`] what is printed; [`scale`] is about numbers of containers where nothing is to be done. All of
//! them go through the same proxy, so that calls are counted alike and nobody is faster for going round it. The gap is what a
//! container's own program stamps: from its `stop` to the `listen` of the one that took its place.

pub mod fleet;
pub mod order;
pub mod scale;
pub mod table;
