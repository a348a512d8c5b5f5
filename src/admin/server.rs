//! The connections of the admin API: bounded in number, in the size of a request's head, and in time.
//!
//! Whoever opens connections and says nothing must not be able to keep the operator out.

use std::{sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_io_timeout::TimeoutStream;

use super::askers::Peer;

/// Most connections at the same time; streams of events have a smaller limit of their own.
const CONNECTIONS_MAX: usize = 64;

/// Longest wait for a request's head, also on a connection that is kept open.
const HEAD_PATIENCE: Duration = Duration::from_secs(15);

/// Longest wait for a reader to take a part of an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

/// Most bytes and most fields of a request's head; the answer beyond is 431.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEAD_FIELDS_MAX: usize = 64;

const FULL: &str = "{\"error\":\"too many connections\",\"cause\":\"64 are open already\",\
                    \"hint\":\"close the dashboards that nobody looks at, then try again\"}";

/// Serves until the task is dropped.
///
/// # Errors
/// When the listening socket fails.
pub(super) async fn serve(listener: TcpListener, router: Router) -> std::io::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Of that connection alone, or out of file descriptors for a while.
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tokio::spawn(refuse(stream));
            continue;
        };
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_PATIENCE));
        let service = TowerToHyperService::new(router.clone().layer(Extension(Peer(peer))));
        tokio::spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_PATIENCE)
                .max_buf_size(HEAD_BYTES_MAX)
                .max_headers(HEAD_FIELDS_MAX)
                .serve_connection(TokioIo::new(Box::pin(stream)), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection to the admin API ended");
            }
            drop(slot);
        });
    }
}

async fn refuse(mut stream: TcpStream) {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{FULL}",
        FULL.len()
    );
    let answer = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // What was asked is read to its end: else the close would be a reset, and the answer be lost with it.
        let mut asked = [0; 1024];
        while stream.read(&mut asked).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), answer).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_json_and_tells_the_limit() {
        assert!(FULL.contains(&CONNECTIONS_MAX.to_string()));
        serde_json::from_str::<serde_json::Value>(FULL).unwrap();
    }
}
