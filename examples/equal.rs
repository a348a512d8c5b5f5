//! Compares two servers as the tests do: `equal LOCAL_URI ATLAS_URI` prints what differs, and ends with 1 if anything does.

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;

use mongodb::Client;
use support::equal::{MayDiffer, differences, everything};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let uris: Vec<_> = std::env::args().skip(1).collect();
    let [local, atlas] = &uris[..] else {
        eprintln!("usage: equal LOCAL_URI ATLAS_URI");
        return Ok(ExitCode::from(2));
    };
    let (local, atlas) = (Client::with_uri_str(local).await?, Client::with_uri_str(atlas).await?);
    let found =
        differences(&everything(&local).await?, &everything(&atlas).await?, MayDiffer::Nothing);
    for text in &found {
        println!("{text}");
    }
    Ok(ExitCode::from(u8::from(!found.is_empty())))
}
