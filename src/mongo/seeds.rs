//! Why no server could be chosen, found out by asking each of them directly.
//!
//! The driver says of all servers together that none fits, with a dump of what it knows: not that the set has
//! another name than `replicaSet=` says (it drops such a server from its list), nor that the members' own names
//! do not resolve here. So after a choice that failed each server is asked by itself, without credentials: for
//! its address, for a connection, and for `hello`.

use std::{io, time::Duration};

use bson::{Document, RawDocument, rawdoc};
use mongodb::options::{ClientOptions, ServerAddress, Tls, TlsOptions};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream, lookup_host},
};

use super::{
    cause::{describe, dump, innermost},
    trusting::trusting,
};

/// How long one question may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Servers that are asked; a set has at most fifty members, and a sentence should end.
const ASKED_MAX: usize = 12;

/// Longest reply to `hello`.
const REPLY_MAX: usize = 1 << 20;

const DEFAULT_PORT: u16 = 27017;

/// What makes a standalone server fit.
pub const STANDALONE_HINT: &str = "make it a replica set of one member; no data is moved:\n  \
     1. add `replication: {replSetName: rs0}` to mongod.conf and restart mongod\n  \
     2. run `rs.initiate()` once in mongosh";

/// What was found out, for a person.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub text: String,
    /// What to do, where that is certain.
    pub hint: Option<String>,
}

/// What one server did.
#[derive(Debug)]
enum Answer {
    NoName,
    NothingListens,
    Silent,
    Unreachable(io::Error),
    Closes,
    WantsTls,
    HasNoTls,
    Http,
    NotMongo,
    Tls(String),
    Answers(Box<Document>),
}

/// Asks each server that `options` name, and, where they belong to the set that is looked for, its members.
pub(super) async fn ask(options: &ClientOptions, origin: &str) -> Found {
    let mut asked: Vec<(ServerAddress, Answer)> = Vec::new();
    let seeds = look_at(options, &options.hosts, &asked).await;
    asked.extend(seeds);
    let seeds = asked.len();
    if options.direct_connection != Some(true) {
        let members: Vec<ServerAddress> = asked
            .iter()
            .filter_map(|(_, finding)| match finding {
                Answer::Answers(hello) if is_of_the_set(options, hello) => Some(hello),
                _ => None,
            })
            .flat_map(|hello| members(hello))
            .collect();
        let members = look_at(options, &members, &asked).await;
        asked.extend(members);
    }
    conclude(options, origin, &asked, seeds)
}

fn is_of_the_set(options: &ClientOptions, hello: &Document) -> bool {
    let set = hello.get_str("setName").ok();
    set.is_some() && options.repl_set_name.as_deref().is_none_or(|wanted| set == Some(wanted))
}

fn members(hello: &Document) -> Vec<ServerAddress> {
    ["hosts", "passives"]
        .into_iter()
        .filter_map(|list| hello.get_array(list).ok())
        .flatten()
        .filter_map(|host| ServerAddress::parse(host.as_str()?).ok())
        .collect()
}

async fn look_at(
    options: &ClientOptions,
    servers: &[ServerAddress],
    but: &[(ServerAddress, Answer)],
) -> Vec<(ServerAddress, Answer)> {
    let mut others: Vec<&ServerAddress> = Vec::new();
    for server in servers {
        if !others.contains(&server) && !but.iter().any(|(known, _)| known == server) {
            others.push(server);
        }
    }
    others.truncate(ASKED_MAX.saturating_sub(but.len()));
    let looks = others.into_iter().map(async |server| {
        let finding = look(options, server).await;
        (server.clone(), finding)
    });
    futures_util::future::join_all(looks).await
}

async fn look(options: &ClientOptions, server: &ServerAddress) -> Answer {
    match &options.tls {
        Some(Tls::Enabled(tls)) => match by_driver(server, tls.clone()).await {
            Ok(hello) => Answer::Answers(Box::new(hello)),
            Err(Answer::Silent) => Answer::Silent,
            Err(failure) => match by_hand(server).await {
                Answer::Answers(_) => Answer::HasNoTls,
                // Without TLS it closes, or answers what no MongoDB would, as a server does that wants TLS. It got that
                // before, so what went wrong then is the cause.
                Answer::Closes | Answer::NotMongo => failure,
                other => other,
            },
        },
        _ => match by_hand(server).await {
            Answer::Closes => {
                let mut tls = TlsOptions::default();
                tls.allow_invalid_certificates = Some(true);
                match by_driver(server, tls).await {
                    Ok(_) => Answer::WantsTls,
                    // The server wants a client certificate, for instance, which this question does not show.
                    Err(Answer::Tls(refusal))
                        if refusal.to_ascii_lowercase().contains("certificate") =>
                    {
                        Answer::WantsTls
                    }
                    Err(_) => Answer::Closes,
                }
            }
            finding => finding,
        },
    }
}

/// `hello` over a connection of one's own, without TLS.
async fn by_hand(server: &ServerAddress) -> Answer {
    let asked = async {
        match server {
            ServerAddress::Tcp { host, port } => {
                let port = port.unwrap_or(DEFAULT_PORT);
                let Ok(found) = lookup_host((host.as_str(), port)).await else {
                    return Answer::NoName;
                };
                let found: Vec<_> = found.collect();
                match TcpStream::connect(&found[..]).await {
                    Ok(stream) => hello(stream).await,
                    Err(error) => not_connected(error),
                }
            }
            ServerAddress::Unix { path } => match UnixStream::connect(path).await {
                Ok(stream) => hello(stream).await,
                Err(error) => not_connected(error),
            },
            _ => Answer::NoName,
        }
    };
    tokio::time::timeout(ANSWER_WITHIN, asked).await.unwrap_or(Answer::Silent)
}

fn not_connected(error: io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Answer::NothingListens,
        io::ErrorKind::ConnectionReset => Answer::Closes,
        _ => Answer::Unreachable(error),
    }
}

async fn hello(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Answer {
    const OP_MSG: u32 = 2013;
    const HEADER: usize = 16;
    let question = rawdoc! { "hello": 1, "$db": "admin" };
    let length = HEADER + 5 + question.as_bytes().len();
    let mut message = Vec::with_capacity(length);
    for number in [length as u32, 1, 0, OP_MSG, 0] {
        message.extend_from_slice(&number.to_le_bytes());
    }
    message.push(0);
    message.extend_from_slice(question.as_bytes());
    if stream.write_all(&message).await.is_err() {
        return Answer::Closes;
    }
    let mut answer = Vec::new();
    loop {
        let whole = match answer.first_chunk::<HEADER>() {
            Some(header) => {
                let number = |at: usize| {
                    let bytes = header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                    bytes.map_or(0, u32::from_le_bytes)
                };
                let whole = number(0) as usize;
                if answer.starts_with(b"HTTP/") {
                    return Answer::Http;
                }
                if number(12) != OP_MSG || !(HEADER + 5..REPLY_MAX).contains(&whole) {
                    return Answer::NotMongo;
                }
                whole
            }
            None => HEADER,
        };
        if answer.len() >= whole && whole > HEADER {
            let document = answer.get(HEADER + 5..whole).map(RawDocument::from_bytes);
            return match document.and_then(Result::ok).map(Document::try_from) {
                Some(Ok(hello)) => Answer::Answers(Box::new(hello)),
                _ => Answer::NotMongo,
            };
        }
        match stream.read_buf(&mut answer).await {
            Ok(0) | Err(_) if answer.is_empty() => return Answer::Closes,
            Ok(0) | Err(_) => return Answer::NotMongo,
            Ok(_) => {}
        }
    }
}

/// `hello` by the driver, for its TLS. Nobody says who they are. What fails is TLS, or there is no answer.
async fn by_driver(server: &ServerAddress, tls: TlsOptions) -> Result<Document, Answer> {
    let options = ClientOptions::builder()
        .hosts(vec![server.clone()])
        .direct_connection(true)
        .tls(Tls::Enabled(tls))
        .app_name("outrigger".to_owned())
        .connect_timeout(ANSWER_WITHIN)
        .server_selection_timeout(ANSWER_WITHIN)
        .build();
    let client = trusting(options).map_err(|error| Answer::Tls(describe(&error)))?;
    let admin = client.database("admin");
    // The options bound the connection, and not what is asked over it.
    match tokio::time::timeout(2 * ANSWER_WITHIN, admin.run_command(bson::doc! { "hello": 1 }))
        .await
    {
        Ok(answer) => answer.map_err(|error| Answer::Tls(refusal(&error))),
        Err(_) => Err(Answer::Silent),
    }
}

/// Of one server that was asked, so without its name.
fn refusal(error: &mongodb::error::Error) -> String {
    dump(error).map_or_else(|| describe(error), innermost)
}

fn conclude(
    options: &ClientOptions,
    origin: &str,
    asked: &[(ServerAddress, Answer)],
    seeds: usize,
) -> Found {
    let wanted = options.repl_set_name.as_deref();
    let mut hint = None;
    let told: Vec<String> = asked
        .iter()
        .enumerate()
        .map(|(n, (server, finding))| {
            let (text, advice) = words(server, finding, wanted, n >= seeds, origin);
            hint = hint.take().or(advice);
            format!("{}: {text}", name(server))
        })
        .collect();
    let is_primary = |(_, finding): &(ServerAddress, Answer)| {
        matches!(finding, Answer::Answers(hello) if hello.get_bool("isWritablePrimary").unwrap_or(false)
            && is_of_the_set(options, hello))
    };
    let outcome = if options.direct_connection == Some(true) {
        "the server could not be used"
    } else if asked.iter().any(is_primary) {
        "no server could be used in time"
    } else {
        "there is no primary that can be reached"
    };
    Found { text: format!("{outcome}; {}", told.join("; ")), hint }
}

fn words(
    server: &ServerAddress,
    finding: &Answer,
    wanted: Option<&str>,
    is_member: bool,
    origin: &str,
) -> (String, Option<String>) {
    let plain = |text: &str| (text.to_owned(), None);
    match finding {
        Answer::NoName if is_member => (
            "a member of the set by this name, which does not resolve here; try `directConnection=true`".to_owned(),
            Some(format!(
                "name one member in {origin} with `directConnection=true`, or make the members' names known to this \
                 machine (`/etc/hosts`)"
            )),
        ),
        Answer::NoName => (
            "the name does not resolve".to_owned(),
            Some(format!(
                "correct the name in {origin}, or make it known to this machine (`/etc/hosts`, the name service)"
            )),
        ),
        Answer::NothingListens if is_member => (
            "nothing listens there, where a member of the set should; try `directConnection=true`".to_owned(),
            None,
        ),
        Answer::NothingListens if matches!(server, ServerAddress::Unix { .. }) => {
            plain("nothing listens at this socket")
        }
        Answer::NothingListens => plain("nothing listens there"),
        Answer::Silent => plain("no answer; a firewall, or a server that hangs"),
        Answer::Unreachable(error) => (format!("cannot be reached, {error}"), None),
        Answer::Closes => plain("closes each connection at once"),
        Answer::WantsTls => (
            "answers with TLS only".to_owned(),
            Some(format!("add `tls=true` to {origin}, and `tlsCAFile=` for an authority of your own")),
        ),
        Answer::HasNoTls => (
            "answers, but without TLS".to_owned(),
            Some(format!("switch TLS on in the server, or take `tls=true` and the other options of TLS out of {origin}")),
        ),
        Answer::Http => (
            "answers as a web server does, and is no MongoDB".to_owned(),
            Some(format!("correct host and port in {origin}")),
        ),
        Answer::NotMongo => (
            "answers, but not as MongoDB does".to_owned(),
            Some(format!("correct host and port in {origin}")),
        ),
        Answer::Tls(refusal) => (format!("TLS fails ({refusal})"), of_tls(refusal, origin)),
        Answer::Answers(hello) => answered(hello, wanted, origin),
    }
}

/// What to do about a certificate that is not believed. It has nothing to do with the user.
fn of_tls(refusal: &str, origin: &str) -> Option<String> {
    let has = |sign: &str| refusal.contains(sign);
    let advice = if has("UnknownIssuer") {
        format!(
            "name the file of the authority that has signed the server's certificate, `tlsCAFile=…` in {origin}, or have this \
             machine believe it (`update-ca-certificates`)"
        )
    } else if has("not valid for name") || has("NotValidForName") {
        format!(
            "name the server in {origin} as its certificate does, or have its certificate made for this name"
        )
    } else if has("xpired") || has("NotValidYet") || has("not valid yet") {
        "have the server's certificate renewed, and see whether this machine's clock is right"
            .to_owned()
    } else {
        return None;
    };
    Some(advice)
}

fn answered(hello: &Document, wanted: Option<&str>, origin: &str) -> (String, Option<String>) {
    let is = |field: &str| hello.get_bool(field).unwrap_or(false);
    let standalone = Some(STANDALONE_HINT.to_owned());
    match (hello.get_str("setName"), wanted) {
        (Ok(set), Some(wanted)) if set != wanted => (
            format!("answers, but its set is `{set}`, not `{wanted}`"),
            Some(format!("write `replicaSet={set}` in {origin}, if it is the right server")),
        ),
        (Ok(_), _) => {
            let role = match () {
                () if is("isWritablePrimary") => "as the primary",
                () if is("secondary") => "as a secondary",
                () if is("arbiterOnly") => "as an arbiter",
                () => "and is not ready",
            };
            (format!("answers {role}"), None)
        }
        (Err(_), _) if hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") => {
            let hint = format!("take `replicaSet=` out of {origin}");
            ("is a router (mongos), no replica set".to_owned(), wanted.map(|_| hint))
        }
        (Err(_), _) if is("isreplicaset") => (
            "answers, but its set was never initiated".to_owned(),
            Some("run `rs.initiate()` once in mongosh; no data is moved".to_owned()),
        ),
        (Err(_), Some(_)) => ("answers, but is no replica set".to_owned(), standalone),
        (Err(_), None) => ("answers, and is no replica set".to_owned(), None),
    }
}

fn name(server: &ServerAddress) -> String {
    match server {
        ServerAddress::Tcp { host, port } => {
            let port = port.unwrap_or(DEFAULT_PORT);
            if host.contains(':') {
                format!("`[{host}]:{port}`")
            } else {
                format!("`{host}:{port}`")
            }
        }
        ServerAddress::Unix { path } => format!("`{}`", path.display()),
        other => format!("`{other}`"),
    }
}
