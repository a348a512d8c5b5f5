//! The first copy, by `COPY` in its binary form, into a table that has none of the rows.
//!
//! It is twice as quick as an upsert of the same rows, and all or nothing: where the server refuses one of them nothing
//! is there, and they go through [`batch`], which finds the row.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, future::FutureExt, stream};
use tokio_postgres::{Client, Error};

use super::{
    batch::{self, RowWrite, Statements},
    cell::Cell,
    class::Class,
    connect::{Failed, Session},
    fence::{self, Fence},
    statement,
    table::Table,
};

/// Fewer rows go as an upsert, which is a round trip less.
pub const ROWS_MIN: usize = 50;

/// As it stands in PostgreSQL's manual; then no flags, and no extension of the header.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Bytes in one message, about.
const CHUNK: usize = 256 << 10;

/// Writes rows that are not there. False where that is not so, or a row is refused: nothing was written then.
///
/// # Errors
/// Where the server could not be asked, or this agent's lease is not the one that counts.
pub async fn copy(
    session: &mut Session,
    fence: Option<&Fence>,
    table: &Table,
    items: &[RowWrite],
) -> Result<bool, Failed> {
    let rows: Vec<_> = items.iter().filter_map(RowWrite::row).collect();
    let said = Statements::said(table, items);
    let own: Vec<_> = rows.iter().map(|row| row.cells.as_slice()).collect();
    let children: Vec<_> =
        (0..table.children.len()).map(|at| statement::child_rows(&rows, at)).collect();
    let begun = fence::begin(session, fence).await?;
    let copied = session
        .within(async |client| {
            send(client, &statement::copy(table), &own).await?;
            for (child, elements) in table.children.iter().zip(&children) {
                send(client, &statement::copy_child(child), elements).await?;
            }
            let commit = async { client.batch_execute("COMMIT").await.map(|()| Vec::new()) };
            batch::answers(said.futures(client).chain([commit.boxed()])).await.map(drop)
        })
        .await;
    let Err(failed) = copied else {
        begun.committed();
        return Ok(true);
    };
    begun.roll_back(session).await;
    match failed.class {
        Class::Rejected if !batch::is_of_the_table(&failed) => Ok(false),
        // The other way runs it again.
        Class::Conflict => Ok(false),
        _ => Err(failed),
    }
}

async fn send(client: &Client, statement: &str, rows: &[&[Cell]]) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    // The driver closes its statement as soon as the copy is over, within the transaction: nothing of it is left behind a
    // pooler.
    let sink = client.copy_in::<_, Bytes>(statement).await?;
    let mut sink = std::pin::pin!(sink);
    let mut out = BytesMut::with_capacity(CHUNK + (CHUNK >> 2));
    out.put_slice(HEADER);
    for cells in rows {
        out.put_i16(cells.len() as i16);
        for cell in *cells {
            cell.put(&mut out);
        }
        if out.len() >= CHUNK {
            sink.send(out.split().freeze()).await?;
        }
    }
    // The end.
    out.put_i16(-1);
    sink.send_all(&mut stream::iter([Ok(out.freeze())])).await?;
    sink.as_mut().finish().await.map(drop)
}
