//! What every task stands on: the clock, the way out, places to crash in tests, small files, whom TLS trusts.

pub mod clock;
pub mod crash;
pub mod files;
pub mod shutdown;
pub mod trust;
