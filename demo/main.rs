//! `make demo`: an application that takes orders, and the agent between its database and a copy of it, which goes away for
//! some seconds in the middle. The copy is a stand-in for Atlas; `make demo-postgres`: a PostgreSQL, asked in SQL meanwhile.
//! `make demo-outbox` turns that round: the application writes PostgreSQL.
//!
//! Everything is real but the distance: two servers, the program itself, and a proxy as the line
//! that is cut. Nothing is left behind.

#[path = "../tests/support/mod.rs"]
mod support;

mod atlas;
mod outbox;
mod postgres;
mod shop;
mod show;

#[tokio::main]
async fn main() {
    // One program for all: each would have to be linked by itself.
    let are_equal = match std::env::args().nth(1).as_deref() {
        None => atlas::demo().await,
        Some("postgres") => postgres::demo().await,
        Some("outbox") => outbox::demo().await,
        Some(other) => panic!("`{other}` is no demo"),
    };
    if !are_equal {
        std::process::exit(1);
    }
}
