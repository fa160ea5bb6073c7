//! Configurations of distribution as they are found: what is taken, what is noted, what is refused.

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Distribution> {
    Distribution::parse(text, [])
}

fn with(environment: &[(&str, &str)]) -> Result<Distribution> {
    let variables = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Distribution::parse(MINIMAL, variables)
}

const MINIMAL: &str = "version: 0.1\nstorage: {filesystem: {rootdirectory: /srv}}\n";

/// What the image of distribution runs with.
const OF_THE_IMAGE: &str = "
version: 0.1
log:
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/registry
http:
  addr: :5000
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
";

/// Every key that means something here.
const FULL: &str = "
version: 0.1
log:
  level: debug
  formatter: json
  accesslog: {disabled: true}
storage:
  filesystem: {rootdirectory: /data, maxthreads: 100}
  delete: {enabled: true}
  redirect: {disable: true}
  maintenance:
    uploadpurging: {enabled: true, age: 48h, interval: 24h, dryrun: false}
    readonly: {enabled: false}
  tag: {concurrencylimit: 8}
auth:
  htpasswd: {realm: basic-realm, path: /auth/htpasswd}
http:
  addr: 127.0.0.1:5443
  secret: asecretforlocaldevelopment
  draintimeout: 60s
  tls: {certificate: /tls/cert.pem, key: /tls/key.pem, minimumtls: tls1.2}
  debug: {addr: 'localhost:5001', prometheus: {enabled: true, path: /metrics}}
notifications:
  events: {includereferences: true}
  endpoints:
    - name: alistener
      url: https://my.listener.example/event
      headers: {Authorization: [Bearer hush]}
      timeout: 1s
      threshold: 10
      backoff: 5s
      ignoredmediatypes: [application/octet-stream]
      ignore: {mediatypes: [a/b], actions: [pull]}
    - {name: asleep, disabled: true, url: 'https://my.listener.example/event'}
";

#[test]
fn a_file_of_distribution_is_told_by_its_version_and_its_storage() {
    for (text, expect) in [
        (MINIMAL, true),
        (OF_THE_IMAGE, true),
        ("version: 0.1", false),
        ("storage: {}", false),
        ("release: {name: a}\nvalues: {}", false),
        ("listen: '127.0.0.1:1'", false),
        ("", false),
        ("[", false),
    ] {
        assert_eq!(Distribution::is_one(text), expect, "{text}");
    }
}

#[test]
fn the_file_of_the_image_is_taken_as_it_is() {
    let Distribution {
        settings,
        logging,
        notes,
    } = parse(OF_THE_IMAGE).unwrap();
    assert_eq!(settings.listen.to_string(), "[::]:5000");
    assert_eq!(settings.data, Path::new("/var/lib/registry"));
    assert_eq!(settings.writes, Writes::NoDeletes);
    assert_eq!((settings.tls, settings.access), (None, None));
    assert_eq!(settings.admin_listen, None);
    assert!(settings.upstreams.is_empty(), "nothing is fetched unasked");
    assert_eq!(logging.level, LogLevel::Info);
    let noted: Vec<_> = notes
        .iter()
        .filter_map(|note| note.split_whitespace().next())
        .collect();
    assert_eq!(
        noted,
        [
            "log.fields",
            "storage.cache.blobdescriptor",
            "http.headers",
            "health.storagedriver"
        ]
    );
}

#[test]
fn every_key_that_exists_here_counts() {
    let Distribution {
        settings, logging, ..
    } = parse(FULL).unwrap();
    assert_eq!(
        (logging.level, logging.format),
        (LogLevel::Debug, LogFormat::Json)
    );
    assert_eq!(settings.access_log.mode, AccessLogMode::None);
    assert_eq!(settings.data, Path::new("/data"));
    assert_eq!(settings.writes, Writes::All);
    assert_eq!(settings.limits.upload_hours, 48);
    assert_eq!(settings.listen.to_string(), "127.0.0.1:5443");
    assert_eq!(settings.admin_listen.unwrap().to_string(), "127.0.0.1:5001");
    assert_eq!(settings.drain, Duration::from_secs(60));
    assert_eq!(settings.tls.unwrap().key, Path::new("/tls/key.pem"));
    assert_eq!(
        settings.upload_secret_text.as_ref().unwrap().expose(),
        "asecretforlocaldevelopment"
    );
    let access = settings.access.unwrap();
    assert_eq!(
        access.htpasswd.as_deref(),
        Some(Path::new("/auth/htpasswd"))
    );
    assert_eq!(access.rules.first().unwrap().actions, everything());
    assert!(!access.anonymous_pull);
    let [endpoint] = &settings.notifications[..] else {
        panic!("{:?}", settings.notifications)
    };
    assert_eq!(endpoint.name, "alistener");
    assert_eq!(
        endpoint.headers,
        [("Authorization".to_owned(), "Bearer hush".to_owned())]
    );
    assert_eq!(
        (endpoint.timeout, endpoint.threshold, endpoint.backoff),
        (Duration::from_secs(1), 10, Duration::from_secs(5))
    );
    assert_eq!(
        endpoint.ignore_media_types,
        ["application/octet-stream", "a/b"]
    );
    assert_eq!(endpoint.ignore_actions, [NotificationAction::Pull]);
}

#[test]
fn secrets_do_not_print() {
    let text = "version: 0.1\nstorage: {filesystem: }\nhttp: {secret: hush}\nproxy: {remoteurl: 'https://a', username: u, password: hush}\nnotifications: {endpoints: [{name: a, url: 'https://a', headers: {X: [hush]}}]}";
    let printed = format!("{:?}", parse(text).unwrap());
    assert!(!printed.contains("hush"), "{printed}");
}

#[test]
fn a_pull_through_cache_is_a_mirror_of_one_upstream() {
    for (url, host) in [
        ("https://registry-1.docker.io", "docker.io"),
        ("https://registry.example:5000/", "registry.example:5000"),
    ] {
        let text = format!("{MINIMAL}proxy: {{remoteurl: '{url}', username: me, password: pw}}");
        let settings = parse(&text).unwrap().settings;
        assert_eq!(settings.mirror_of.as_deref(), Some(host));
        assert_eq!(settings.writes, Writes::None);
        assert!(settings.uplink.revalidate_pulls);
        let [upstream] = &settings.upstreams[..] else {
            panic!("{:?}", settings.upstreams)
        };
        assert_eq!(upstream.host, host);
        assert_eq!(upstream.endpoints, [url.trim_end_matches('/')]);
        let Credentials::Given { username, password } = &upstream.credentials else {
            panic!("{:?}", upstream.credentials)
        };
        assert_eq!((username.as_str(), password.expose()), ("me", "pw"));
    }
}

#[test]
fn tokens_are_checked_with_the_keys_of_the_file() {
    let text = format!(
        "{MINIMAL}auth: {{token: {{realm: 'https://auth.example/token', service: s, issuer: i, rootcertbundle: /b.pem}}}}"
    );
    let access = parse(&text).unwrap().settings.access.unwrap();
    let token = access.token.unwrap();
    assert_eq!(token.keys, Path::new("/b.pem"));
    assert_eq!(token.rsa_algorithm, RsaAlgorithm::RS256);
    assert_eq!((token.service.as_str(), token.issuer.as_str()), ("s", "i"));
}

#[test]
fn certificates_of_clients_may_do_everything_as_there() {
    let text = format!("{MINIMAL}http: {{tls: {{certificate: c, key: k, clientcas: [/ca.pem]}}}}");
    let access = parse(&text).unwrap().settings.access.unwrap();
    assert_eq!(access.client_ca.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(access.rules.first().unwrap().certificates, ["*"]);
}

#[test]
fn what_is_wrong_is_refused_by_key_and_with_a_way_out() {
    for (text, path, message) in [
        ("htpp: {addr: ':1'}", "htpp", "did you mean http?"),
        ("http: {adr: ':1'}", "http.adr", "did you mean http.addr?"),
        (
            "http: {debug: {prometeus: {enabled: true}}}",
            "http.debug.prometeus",
            "did you mean http.debug.prometheus?",
        ),
        ("nonsense: 1", "nonsense", "unknown key"),
        ("redis: {addr: a}", "redis", "look-ups need no cache"),
        ("http: {addr: nowhere}", "http.addr", "such as :5000"),
        ("http: {net: unix}", "http.net", "only tcp"),
        ("http: {prefix: /registry/}", "http.prefix", "not supported"),
        (
            "http: {tls: {letsencrypt: {email: a}}}",
            "http.tls.letsencrypt",
            "certificates come from files",
        ),
        ("http: {tls: {certificate: a}}", "http.tls.key", "missing"),
        (
            "http: {tls: {certificate: a, key: b, minimumtls: tls1.3}}",
            "http.tls.minimumtls",
            "not supported",
        ),
        ("http: {draintimeout: soon}", "http.draintimeout", "1h30m"),
        ("auth: {silly: {realm: a}}", "auth.silly", "leave auth out"),
        (
            "auth: {htpasswd: {realm: a}}",
            "auth.htpasswd.path",
            "missing",
        ),
        (
            "auth: {token: {realm: r, service: s, issuer: i}}",
            "auth.token.rootcertbundle",
            "so is jwks",
        ),
        (
            "http: {tls: {certificate: a, key: b, clientcas: [c]}}\nauth: {htpasswd: {path: p}}",
            "http.tls.clientcas",
            "not both",
        ),
        (
            "notifications: {endpoints: [{name: a, url: 'https://a', ignore: {actions: [look]}}]}",
            "notifications.endpoints[0].ignore.actions",
            "look is none of",
        ),
        (
            "notifications: {endpoints: [{url: 'https://a'}]}",
            "notifications.endpoints[0].name",
            "missing",
        ),
        ("proxy: {remoteurl: a/b}", "proxy.remoteurl", "a URL"),
        ("proxy: {exec: {command: a}}", "proxy.exec", "no program"),
        (
            "middleware: {repository: [{name: a}]}",
            "middleware",
            "there is none",
        ),
        ("log: {level: loud}", "log.level", "debug"),
        ("log: {hooks: [{type: mail}]}", "log.hooks", "no mail"),
        (
            "validation: {manifests: {urls: {allow: [a]}}}",
            "validation.manifests.urls.allow",
            "not supported",
        ),
        ("health: {http: [{uri: a}]}", "health.http", "readiness"),
    ] {
        let error = parse(&format!("{MINIMAL}{text}")).unwrap_err().to_string();
        assert!(
            error
                .lines()
                .any(|line| line.starts_with(&format!("{path}: ")) && line.contains(message)),
            "{text}: {error}"
        );
    }
    for (text, path) in [
        ("version: 0.2\nstorage: {filesystem: }", "version"),
        ("version: 0.1\nstorage: {s3: {bucket: b}}", "storage.s3"),
        ("version: 0.1\nstorage: inmemory", "storage.inmemory"),
        (
            "version: 0.1\nstorage: {filesystem: {rootdir: /a}}",
            "storage.filesystem.rootdir",
        ),
        (
            "version: 0.1\nstorage: {filesystem: , cache: {blobdescriptor: redis}}",
            "storage.cache.blobdescriptor",
        ),
        (
            "version: 0.1\nstorage: {filesystem: , delete: {enabled: maybe}}",
            "storage.delete.enabled",
        ),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with(path), "{text}: {error}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let error = parse(&format!(
        "{MINIMAL}nonsense: 1\nhttp: {{net: unix, adr: 1}}"
    ))
    .unwrap_err()
    .to_string();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn the_environment_comes_on_top() {
    let settings = with(&[
        ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/other"),
        ("REGISTRY_STORAGE_DELETE_ENABLED", "true"),
        ("REGISTRY_HTTP_ADDR", ":6000"),
        ("REGISTRY_HTTP_TLS_CLIENTCAS", "[/ca.pem]"),
        ("REGISTRY_HTTP_TLS_CERTIFICATE", "c"),
        ("REGISTRY_HTTP_TLS_KEY", "k"),
        ("REGISTRY_LOG_LEVEL", "warn"),
        (
            "REGISTRY_NOTIFICATIONS_ENDPOINTS",
            "[{name: a, url: 'http://a'}]",
        ),
        ("REGISTRY_NOTIFICATIONS_ENDPOINTS_0_URL", "http://b"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!(settings.logging.level, LogLevel::Warn);
    let settings = settings.settings;
    assert_eq!(settings.data, Path::new("/other"));
    assert_eq!(settings.writes, Writes::All);
    assert_eq!(settings.listen.port(), 6000);
    assert!(settings.tls.is_some() && settings.access.is_some());
    assert_eq!(settings.notifications[0].url, "http://b");
}

#[test]
fn variables_of_a_service_called_registry_are_no_configuration() {
    let found = with(&[
        ("REGISTRY_PORT", "tcp://10.96.0.1:5000"),
        ("REGISTRY_SERVICE_HOST", "10.96.0.1"),
    ])
    .unwrap();
    assert_eq!(found.notes.len(), 2, "{:?}", found.notes);
    let error = with(&[("REGISTRY_HTTP_ADRESS", ":1")]).unwrap_err();
    assert!(error.to_string().starts_with("http.adress"), "{error}");
}
