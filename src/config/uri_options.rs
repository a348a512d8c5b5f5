//! What becomes of each option of a connection string.
//!
//! Connection strings are copied from applications, whose drivers know other options than ours, and wish for
//! what an agent must not have: its reads go to the primary with majority, its writes wait for a majority. So an
//! option is passed on, or left out with a reason, or refused by its name: never left to a driver that calls it a
//! denied access, or quotes its value.

/// The longest `appName` that a server takes.
const APP_NAME_MAX: usize = 128;

/// Options whose value is passed on, as far as it has the right form.
const BOOLEANS: &[&str] = &[
    "directConnection",
    "loadBalanced",
    "tls",
    "ssl",
    "tlsInsecure",
    "tlsAllowInvalidCertificates",
];
const NUMBERS: &[&str] = &["connectTimeoutMS", "srvMaxHosts"];
const TEXTS: &[&str] = &[
    "appName",
    "authSource",
    "replicaSet",
    "srvServiceName",
    "tlsCAFile",
    "tlsCertificateKeyFile",
];
#[cfg(feature = "zstd")]
const COMPRESSORS: &[&str] = &["zstd", "zlib", "snappy"];
#[cfg(not(feature = "zstd"))]
const COMPRESSORS: &[&str] = &["zlib", "snappy"];
const MECHANISMS: &[&str] = &["SCRAM-SHA-1", "SCRAM-SHA-256", "MONGODB-X509", "PLAIN"];

const TIMEOUTS: &str = "the timeouts are `local.timeout` and `atlas.timeout`";
const POOL: &str = "the agent has as many connections as it needs";
const READS: &str =
    "the primary is read; to read another member, name it alone with `directConnection=true`";
const BYTES: &str = "documents are copied byte for byte";
const REVOCATION: &str = "whether a certificate was revoked is not looked at";
const OTHER_DRIVER: &str = "it belongs to another driver";

/// Options that do nothing here: the name, values for which nothing is said since they are what is done anyway
/// (`*`: any), and the reason that is said for others.
const IGNORED: &[(&str, &[&str], &str)] = &[
    ("socketTimeoutMS", &[], TIMEOUTS),
    ("timeoutMS", &[], TIMEOUTS),
    ("serverSelectionTimeoutMS", &[], TIMEOUTS),
    ("serverSelectionTryOnce", &[], TIMEOUTS),
    ("waitQueueTimeoutMS", &[], TIMEOUTS),
    ("wtimeoutMS", &[], TIMEOUTS),
    ("wtimeout", &[], TIMEOUTS),
    ("maxPoolSize", &[], POOL),
    ("minPoolSize", &[], POOL),
    ("maxIdleTimeMS", &[], POOL),
    ("maxConnecting", &[], POOL),
    ("maxLifeTimeMS", &[], POOL),
    ("waitQueueMultiple", &[], POOL),
    ("readPreference", &["primary"], READS),
    ("readPreferenceTags", &[], READS),
    ("maxStalenessSeconds", &["-1"], READS),
    ("localThresholdMS", &[], READS),
    ("slaveOk", &[], READS),
    ("readConcernLevel", &["majority"], "what a majority has is read, always"),
    ("w", &["majority"], "each write waits for a majority, always"),
    ("journal", &["true"], "each write waits for a majority, always"),
    ("j", &["true"], "each write waits for a majority, always"),
    ("fsync", &[], "each write waits for a majority, always"),
    ("safe", &["true"], "each write waits for a majority, always"),
    ("retryWrites", &["*"], "the agent itself tries again"),
    ("retryReads", &["*"], "the agent itself tries again"),
    (
        "heartbeatFrequencyMS",
        &[],
        "servers are looked at every ten seconds, and at once where one fails",
    ),
    ("serverMonitoringMode", &["auto"], "the driver finds out"),
    ("uuidRepresentation", &["unspecified", "standard"], BYTES),
    ("unicode_decode_error_handler", &[], BYTES),
    ("document_class", &[], BYTES),
    ("tz_aware", &[], BYTES),
    ("tlsDisableOCSPEndpointCheck", &[], REVOCATION),
    ("tlsDisableCertificateRevocationCheck", &[], REVOCATION),
    ("tlsAllowInvalidHostnames", &["false"], ""),
    ("maxAdaptiveRetries", &[], OTHER_DRIVER),
    ("adaptiveRetries", &[], OTHER_DRIVER),
    ("enableOverloadRetargeting", &[], OTHER_DRIVER),
    ("minHeartbeatFrequencyMS", &[], OTHER_DRIVER),
    ("keepAlive", &[], OTHER_DRIVER),
    ("keepAliveInitialDelay", &[], OTHER_DRIVER),
    ("noDelay", &[], OTHER_DRIVER),
    ("monitorCommands", &[], OTHER_DRIVER),
    ("useNewUrlParser", &["*"], OTHER_DRIVER),
    ("useUnifiedTopology", &["*"], OTHER_DRIVER),
    ("connect", &[], OTHER_DRIVER),
];

/// Options that cannot be done, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    (
        "tlsAllowInvalidHostnames",
        "the name of a certificate is always looked at; let the certificate carry the host's name, or name the \
         host as the certificate does",
    ),
    (
        "tlsCertificateKeyFilePassword",
        "a key with a password cannot be read; take the password off it, and let only the agent's user read the file",
    ),
    ("tlsCRLFile", "lists of revoked certificates cannot be read; take it away"),
    (
        "authMechanismProperties",
        "they belong to ways of proving who one is that Outrigger does not have (Kerberos, AWS, OIDC)",
    ),
    ("gssapiServiceName", "Kerberos cannot be used; use a user with a password or a certificate"),
    ("proxyHost", "no proxy can be used; let this machine reach the server by itself"),
    ("proxyPort", "no proxy can be used; let this machine reach the server by itself"),
    ("proxyUsername", "no proxy can be used; let this machine reach the server by itself"),
    ("proxyPassword", "no proxy can be used; let this machine reach the server by itself"),
    ("autoEncryption", "what the application encrypts is copied as it is; take it away"),
];

/// The options of a connection string, sorted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Sorted {
    /// What the driver gets.
    pub kept: String,
    /// What it does not get although it says something, each with the reason.
    pub ignored: Vec<String>,
}

/// Sorts them.
///
/// # Errors
/// What is wrong, in words that name the option and do not repeat its value.
pub(super) fn sort(options: &str) -> Result<Sorted, String> {
    let mut sorted = Sorted::default();
    let mut seen: Vec<String> = Vec::new();
    for pair in options.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            // Its name is not repeated: an unescaped `?` in a password makes what follows look like an option.
            return Err(
                "after the `?`, something is no option: each is `name=value`, with `&` between them"
                    .to_owned(),
            );
        };
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        if let Some((name, silent, reason)) = IGNORED.iter().find(|(known, ..)| is(known))
            && (!reason.is_empty() || silent.iter().any(|same| same.eq_ignore_ascii_case(value)))
        {
            let is_said = |same: &&str| *same == "*" || same.eq_ignore_ascii_case(value);
            if !silent.iter().any(is_said) {
                sorted.ignored.push(format!("`{name}` does nothing here: {reason}"));
            }
            continue;
        }
        if let Some((name, reason)) = REFUSED.iter().find(|(known, _)| is(known)) {
            return Err(format!("the option `{name}` is not possible: {reason}"));
        }
        // Whatever stands before an `@` may be half of a password.
        let may_be_named = !options.contains('@');
        let kept = kept(name, value, may_be_named, &mut sorted.ignored)?;
        let Some((name, value)) = kept else { continue };
        if seen.contains(&name) {
            return Err(format!("the option `{name}` is given twice"));
        }
        if !sorted.kept.is_empty() {
            sorted.kept.push('&');
        }
        for part in [&name, "=", &value] {
            sorted.kept.push_str(part);
        }
        seen.push(name);
    }
    Ok(sorted)
}

/// The option as the driver takes it.
fn kept(
    name: &str,
    value: &str,
    may_be_named: bool,
    ignored: &mut Vec<String>,
) -> Result<Option<(String, String)>, String> {
    let known = |names: &[&'static str]| {
        names.iter().copied().find(|known| known.eq_ignore_ascii_case(name))
    };
    let kept = |name: &str, value: &str| Ok(Some((name.to_owned(), value.to_owned())));
    if let Some(name) = known(BOOLEANS) {
        let lower = value.to_ascii_lowercase();
        return match lower.as_str() {
            "true" | "false" => kept(name, &lower),
            _ => Err(format!("the option `{name}` is `true` or `false`")),
        };
    }
    if let Some(name) = known(NUMBERS) {
        return match value.parse::<u32>() {
            Ok(_) => kept(name, value),
            Err(_) => Err(format!("the option `{name}` is a number")),
        };
    }
    if let Some(name) = known(TEXTS) {
        return match value.len() {
            0 => Err(format!("the option `{name}` is empty")),
            APP_NAME_MAX.. if name == "appName" => {
                Err(format!("the option `{name}` is longer than {APP_NAME_MAX} bytes"))
            }
            _ => kept(name, value),
        };
    }
    if known(&["zlibCompressionLevel"]).is_some() {
        return match value.parse::<i32>() {
            Ok(-1..=9) => kept("zlibCompressionLevel", value),
            _ => Err("the option `zlibCompressionLevel` is a number from -1 to 9".to_owned()),
        };
    }
    if known(&["compressors"]).is_some() {
        let asked = value.split(',').map(str::to_ascii_lowercase);
        let (usable, others): (Vec<_>, Vec<_>) =
            asked.partition(|name| COMPRESSORS.contains(&name.as_str()));
        if others.iter().any(|name| !name.is_empty()) {
            let can = COMPRESSORS.join(", ");
            ignored.push(format!("`compressors` names what Outrigger does not have; it has {can}"));
        }
        return if usable.is_empty() { Ok(None) } else { kept("compressors", &usable.join(",")) };
    }
    if known(&["authMechanism"]).is_some() {
        if value.eq_ignore_ascii_case("DEFAULT") {
            return Ok(None);
        }
        return match MECHANISMS.iter().find(|can| can.eq_ignore_ascii_case(value)) {
            Some(mechanism) => kept("authMechanism", mechanism),
            None => Err(format!(
                "the option `authMechanism` asks for what Outrigger does not have; it has {}",
                MECHANISMS.join(", ")
            )),
        };
    }
    Err(unknown(name, may_be_named))
}

/// An option that nobody knows is a typing mistake as a rule.
fn unknown(name: &str, may_be_named: bool) -> String {
    let all = BOOLEANS.iter().chain(NUMBERS).chain(TEXTS).copied();
    let all = all.chain(["zlibCompressionLevel", "compressors", "authMechanism"]);
    let all = all.chain(IGNORED.iter().map(|(name, ..)| *name));
    let lower = name.to_ascii_lowercase();
    let nearest = all
        .map(|known| (strsim::damerau_levenshtein(&known.to_ascii_lowercase(), &lower), known))
        .min()
        .filter(|(distance, known)| *distance <= 3 && distance * 3 <= known.len());
    let called = if may_be_named { format!("the option `{name}`") } else { "an option".to_owned() };
    match nearest {
        Some((_, nearest)) => format!("{called} is not known; did you mean `{nearest}`?"),
        None => format!("{called} is not known; take it away"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_application_asks_for_is_left_out_with_its_reason_and_what_is_done_anyway_in_silence()
    {
        let silent =
            sort("retryWrites=true&w=majority&readPreference=primary&journal=true").unwrap();
        let told = sort("w=0&replicaSet=rs0&readPreference=secondary&SOCKETTIMEOUTMS=5").unwrap();

        assert_eq!(silent, Sorted::default());
        assert_eq!(told.kept, "replicaSet=rs0");
        let names: Vec<_> =
            told.ignored.iter().map(|text| text.split('`').nth(1).unwrap()).collect();
        assert_eq!(names, ["w", "readPreference", "socketTimeoutMS"]);
    }

    #[test]
    fn compressors_that_are_unknown_are_left_out_and_the_others_stay() {
        let some = sort("compressors=lz4,zstd").unwrap();
        let none = sort("tls=TRUE&compressors=lz4&authMechanism=default").unwrap();

        assert_eq!((some.kept.as_str(), some.ignored.len()), ("compressors=zstd", 1));
        assert_eq!((none.kept.as_str(), none.ignored.len()), ("tls=true", 1));
    }

    #[test]
    fn what_cannot_be_done_or_is_not_known_is_refused_by_name_and_never_by_value() {
        for (options, named) in [
            ("authMechanismProperties=AWS_SESSION_TOKEN:s3cret", "authMechanismProperties"),
            ("authMechanism=s3cret", "authMechanism"),
            ("tlsCertificateKeyFilePassword=s3cret", "tlsCertificateKeyFilePassword"),
            ("tlsAllowInvalidHostnames=true", "tlsAllowInvalidHostnames"),
            ("proxyPassword=s3cret", "proxyPassword"),
            ("directConnection=s3cret", "directConnection"),
            ("connectTimeoutMS=s3cret", "connectTimeoutMS"),
            ("replicaSet=rs0&replicaset=s3cret", "replicaSet"),
            ("replicaSet=", "replicaSet"),
            ("replicaSett=s3cret", "`replicaSett` is not known; did you mean `replicaSet`?"),
            ("frobnicate=s3cret", "`frobnicate` is not known"),
            ("s3cret", "name=value"),
            ("s3cret=1@h", "an option is not known"),
        ] {
            let refused = sort(options).unwrap_err();
            assert!(refused.contains(named) && !refused.contains("s3cret"), "{options}: {refused}");
        }
    }

    /// Those of MongoDB's reference, and what the drivers of Python, Java, JavaScript and C know beside it.
    const DOCUMENTED: &str = "appName authMechanism authMechanismProperties authSource compressors connectTimeoutMS \
        directConnection gssapiServiceName heartbeatFrequencyMS j journal loadBalanced localThresholdMS maxConnecting \
        maxIdleTimeMS maxPoolSize maxStalenessSeconds minPoolSize proxyHost proxyPassword proxyPort proxyUsername \
        readConcernLevel readPreference readPreferenceTags replicaSet retryReads retryWrites serverMonitoringMode \
        serverSelectionTimeoutMS serverSelectionTryOnce socketTimeoutMS srvMaxHosts srvServiceName ssl timeoutMS tls \
        tlsAllowInvalidCertificates tlsAllowInvalidHostnames tlsCAFile tlsCertificateKeyFile \
        tlsCertificateKeyFilePassword tlsCRLFile tlsDisableCertificateRevocationCheck tlsDisableOCSPEndpointCheck \
        tlsInsecure uuidRepresentation w waitQueueMultiple waitQueueTimeoutMS wtimeout wtimeoutMS \
        zlibCompressionLevel document_class fsync tz_aware unicode_decode_error_handler maxLifeTimeMS \
        minHeartbeatFrequencyMS safe slaveOk keepAlive keepAliveInitialDelay monitorCommands noDelay useNewUrlParser \
        useUnifiedTopology";

    #[test]
    fn every_option_that_a_driver_documents_is_known_and_named_whatever_its_value_is() {
        for name in DOCUMENTED.split_whitespace() {
            for value in ["1", "true", "s3cret", ""] {
                let told = match sort(&format!("{name}={value}")) {
                    // Passed on, or left out with a word or without one.
                    Ok(Sorted { kept, ignored }) => {
                        assert!(kept.is_empty() || kept == format!("{name}={value}"), "{kept}");
                        assert!(ignored.iter().all(|text| text.contains(name)), "{ignored:?}");
                        ignored.concat()
                    }
                    Err(refused) => {
                        assert!(refused.contains(&format!("`{name}`")), "{refused}");
                        refused
                    }
                };
                assert!(!told.contains("not known") && !told.contains("s3cret"), "{told}");
            }
        }
    }

    #[test]
    fn every_option_that_is_left_out_or_refused_says_why() {
        for (name, silent, reason) in IGNORED.iter().filter(|(.., reason)| !reason.is_empty()) {
            let told = sort(&format!("{name}=another")).unwrap().ignored;
            let expected = usize::from(!silent.contains(&"*"));
            assert_eq!(told.len(), expected, "{name}");
            assert!(
                told.iter().all(|text| text.contains(name) && text.contains(reason)),
                "{told:?}"
            );
            for same in silent.iter().filter(|same| **same != "*") {
                assert_eq!(sort(&format!("{name}={same}")).unwrap(), Sorted::default());
            }
        }
        for (name, reason) in REFUSED {
            let told = sort(&format!("{name}=another")).unwrap_err();
            assert!(told.contains(name) && told.contains(reason), "{told}");
        }
    }
}
