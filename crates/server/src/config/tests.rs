//! Configurations, right and wrong, through [`Config::parse`].

use gf_execution::scheduler::Property;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    parse_with(text, Overrides::default(), None)
}

fn parse_with(text: &str, overrides: Overrides, token: Option<&str>) -> Result<Config, ConfigErrors> {
    let token = token.map(str::to_owned);
    let environment = Environment { token, state_dir: Some("/state".into()), ..Environment::default() };
    Config::parse(Some(Path::new("/etc/gf.toml")), text, overrides, &environment)
}

/// Lines and beginnings of messages.
fn check_mistakes(text: &str, expected: &[(usize, &str)]) {
    let ConfigErrors(found) = parse(text).unwrap_err();
    let shown = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(found.len(), expected.len(), "{shown}");
    for (error, (line, beginning)) in found.iter().zip(expected) {
        assert_eq!(error.line, Some(*line), "{shown}");
        assert!(error.message.starts_with(beginning), "expected {beginning:?} in\n{shown}");
    }
}

#[test]
fn nothing_said_is_a_working_server() {
    let config = parse("").unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8980");
    assert_eq!(config.data_dir, Path::new("/state"));
    assert_eq!(config.store, StoreSettings::default());
    let instances: Vec<&str> = config.access.tenants[0].instances.iter().map(InstanceName::as_str).collect();
    assert_eq!(instances, ["", "default"]);
    assert!(config.tls.is_none() && config.access.token.is_none() && config.worker_token.is_none());
    assert_eq!((config.worker, config.worker_program), (Some(WorkerSettings::default()), None));
    assert_eq!(config.execution, ExecutionSettings::default());
}

#[test]
fn what_is_meant_for_one_tenant_is_said_of_that_tenant() {
    let tenant = "[[tenant]]\nname = \"default\"\n";
    let other = "[[tenant]]\nname = \"org-acme\"\n";
    let read = "[access]\nanonymous_read = true\n";
    for one in [read.to_owned(), format!("{read}{tenant}")] {
        assert!(parse(&one).unwrap().access.anonymous_read, "{one}");
    }
    let refused = parse(&format!("{read}{tenant}{other}")).unwrap_err().to_string();
    assert!(refused.contains("gf.toml:2: access.anonymous_read: with several tenants"), "{refused}");
    assert!(refused.contains("write `anonymous_read = true` below the [[tenant]]"), "{refused}");
    let several = parse(&format!("[access]\nanonymous_read = false\n{other}{tenant}anonymous_read = true\n")).unwrap();
    assert_eq!(several.public_tenants, [TenantName::new("default").unwrap()]);
    assert!(!several.access.anonymous_read);
}

#[test]
fn everything_said_is_read() {
    let config = parse(
        r#"
        listen = "[::1]:9000"
        data_dir = "data"
        [log]
        format = "json"
        level = "debug"
        [[tenant]]
        name = "default"
        instances = ["", "default", "spoke-x"]
        anonymous_read = true
        [[tenant]]
        name = "org-acme"
        [store]
        capacity = "100GiB"
        lease = "3h"
        sync_window = "250ms"
        max_blob_size = "2GiB"
        [execution]
        default_timeout = "10min"
        max_timeout = "2h"
        [worker]
        cores = 0x10
        memory = "8GiB"
        cache = "2GiB"
        root = "/"
        properties = ["pool=docker", "flags=-a=b", "empty="]
        network = true
        persistent = false
        action_disk = "20GiB"
        action_log = "1MiB"
        action_files = 5000
        action_processes = 200
        "#,
    )
    .unwrap();
    assert_eq!(config.listen.port(), 9000);
    assert_eq!(config.data_dir, Path::new("/etc/data"), "relative to the file");
    assert_eq!((config.log.format, config.log.level), (LogFormat::Json, LogLevel::Debug));
    assert!(!config.access.anonymous_read && config.public_tenants == [TenantName::new("default").unwrap()]);
    assert_eq!(config.access.tenants[1].instances[0].as_str(), "org-acme");
    let store = StoreSettings {
        capacity_bytes: Some(100 << 30),
        lease: Duration::from_secs(3 * 3600),
        sync_window: Duration::from_millis(250),
        max_blob_size_bytes: 2 << 30,
    };
    assert_eq!(config.store, store);
    let minute = Duration::from_secs(60);
    assert_eq!(
        config.execution,
        ExecutionSettings { enabled: true, default_timeout: 10 * minute, max_timeout: 120 * minute }
    );
    let property = |(name, value): (&str, &str)| Property { name: name.into(), value: value.into() };
    let worker = WorkerSettings {
        cores: Some(16),
        memory_bytes: Some(8 << 30),
        root: Some("/".into()),
        properties: [("pool", "docker"), ("flags", "-a=b"), ("empty", "")].map(property).into(),
        cache_bytes: Some(2 << 30),
        network: Network::OnRequest,
        persistent: Persistent::Refused,
        bounds: ActionBounds {
            disk_bytes: Some(20 << 30),
            log_bytes: Some(1 << 20),
            files: Some(5000),
            processes: Some(200),
        },
    };
    assert_eq!(config.worker, Some(worker));
}

#[test]
fn the_worker_inside_can_be_switched_off() {
    assert_eq!(parse("[worker]\nenabled = false\ncores = 2").unwrap().worker, None);
    check_mistakes("[worker]\nenabled = false\ncores = 0", &[(3, "worker.cores: 0 cores is too little")]);
}

#[test]
fn a_shorter_maximum_holds_for_actions_that_ask_for_no_time() {
    let minute = Duration::from_secs(60);
    let settings = parse("[execution]\nmax_timeout = \"1min\"").unwrap().execution;
    assert_eq!(settings, ExecutionSettings { enabled: true, default_timeout: minute, max_timeout: minute });
}

#[test]
fn five_mistakes_are_five_messages_with_their_lines() {
    let text = r#"listen = "localhost"
prot = 8980

[log]
format = "xml"

[store]
capacity = "100 parsecs"
lease = 6
"#;
    check_mistakes(
        text,
        &[
            (1, "listen: \"localhost\" is not an address"),
            (2, "prot: there is no such key; known here: listen, data_dir"),
            (5, "log.format: "),
            (8, "store.capacity: \"100 parsecs\" is not a size"),
            (9, "store.lease: expected text in quotes, found a number"),
        ],
    );
}

#[test]
fn mistakes_of_syntax_do_not_hide_the_others() {
    check_mistakes("listen = \nprot = 1\n", &[(1, ""), (2, "prot: there is no such key")]);
}

#[test]
fn mistakes_by_kind() {
    check_mistakes("log = 1", &[(1, "log: expected a table, found a number")]);
    check_mistakes("tenant = 1", &[(1, "tenant: write it as [[tenant]]")]);
    check_mistakes("[store]\ncapacity = \"1KiB\"", &[(2, "store.capacity: 1.0 KiB is too little: at least 64.0 MiB")]);
    check_mistakes("[store]\nlease = \"400d\"", &[(2, "store.lease: 400 d is too much")]);
    check_mistakes("[[tenant]]\ninstances = [\"a\"]", &[(1, "tenant.name: is missing")]);
    check_mistakes(
        "[[tenant]]\nname = \"default\"\ninstances = [\"a/blobs\", 7]",
        &[(3, "tenant.instances: the instance name must not"), (3, "tenant.instances: expected text")],
    );
    check_mistakes("[[tenant]]\nname = \"default\"\ninstances = []", &[(3, "tenant.instances: is empty")]);
    check_mistakes(
        "[[tenant]]\nname = \"org-a\"\ninstances = [\"x\"]\n[[tenant]]\nname = \"org-b\"\ninstances = [\"x\"]",
        &[(6, "tenant.instances: \"x\" already belongs to tenant org-a")],
    );
    check_mistakes("[tls]\ncert = \"/dev/null\"", &[(2, "tls.key: is missing")]);
    check_mistakes("[tls]\ncert = \"/no/such\"\nkey = \"/dev/null\"", &[(2, "tls.cert: /no/such cannot be read")]);
    check_mistakes("[access]\ntoken_file = \"/dev/zero\"", &[(2, "access.token_file: /dev/zero cannot be read")]);
    check_mistakes("[access]\ntoken_file = \"/dev/null\"", &[(2, "access.token_file: /dev/null holds no token")]);
    check_mistakes("[workers]\ntoken_file = \"/dev/null\"", &[(2, "workers.token_file: /dev/null holds no token")]);
}

#[test]
fn mistakes_about_workers_and_executions() {
    let workers = "[worker]\nenabled = 1\ncores = -1\nmemory = \"1KiB\"\nroot = \"/no/such\"\nnetwork = \"yes\"";
    check_mistakes(
        workers,
        &[
            (2, "worker.enabled: expected true or false, found a number"),
            (3, "worker.cores: -1 is not a whole number from 0"),
            (4, "worker.memory: 1.0 KiB is too little: at least 64.0 MiB"),
            (5, "worker.root: /no/such cannot be read"),
            (6, "worker.network: expected true or false, found text"),
        ],
    );
    check_mistakes("[worker]\ncores = 1.5", &[(2, "worker.cores: expected a whole number, found a number with")]);
    check_mistakes("[worker]\ncores = 5000", &[(2, "worker.cores: 5000 cores is too much: at most 4096 cores")]);
    check_mistakes("[worker]\nroot = \"/dev/null\"", &[(2, "worker.root: /dev/null is no folder")]);
    check_mistakes("[worker]\nproperties = [\"a=b\", \"gpu\"]", &[(2, "worker.properties: \"gpu\" is not a property")]);
    let many = "\"a=b\", ".repeat(65);
    check_mistakes(&format!("[worker]\nproperties = [{many}]"), &[(2, "worker.properties: 65 platform properties")]);
    let timeouts = "[execution]\nmax_timeout = \"1h\"\ndefault_timeout = \"2h\"";
    check_mistakes(timeouts, &[(3, "execution.default_timeout: is more than max_timeout, which is 1 h")]);
    check_mistakes("[execution]\nmax_timeout = \"400d\"", &[(2, "execution.max_timeout: 400 d is too much")]);
}

#[test]
fn a_secret_in_the_file_is_refused_and_not_shown() {
    let errors = parse("[access]\ntoken = \"hunter2hunter2\"").unwrap_err().to_string();
    assert!(errors.contains("access.token: there is no such key; known here: token_file"), "{errors}");
    assert!(!errors.contains("hunter2"), "{errors}");
}

#[test]
fn an_open_server_stays_on_loopback() {
    check_mistakes("\nlisten = \"0.0.0.0:8980\"", &[(2, "listening on 0.0.0.0:8980 without a token")]);
    check_mistakes("listen = \"[::]:1\"", &[(1, "listening on [::]:1 without a token")]);
    for (address, token, accepted) in [
        ("10.0.0.1:1", None, false),
        ("10.0.0.1:1", Some("abc"), true),
        ("[::ffff:127.0.0.1]:1", None, true),
        ("127.8.8.8:1", None, true),
    ] {
        let overrides = Overrides { listen: Some(address.parse().unwrap()), data_dir: None };
        assert_eq!(parse_with("", overrides, token).is_ok(), accepted, "{address} {token:?}");
    }
}

#[test]
fn a_bad_token_in_the_environment_does_not_open_the_server() {
    for bad in ["", "  \n", "two words", "tök"] {
        assert!(parse_with("", Overrides::default(), Some(bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn the_example_shows_the_defaults() {
    let example = parse(include_str!("../../gf.example.toml")).unwrap();
    assert_eq!(format!("{example:?}"), format!("{:?}", parse("").unwrap()));
}

#[test]
fn what_the_example_leaves_out_is_right_too() {
    let example = include_str!("../../gf.example.toml");
    let lines = example.lines().map(|line| match line.strip_prefix("# ") {
        Some(setting) if setting.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => setting,
        Some(section) if section.starts_with('[') => section,
        _ => line,
    });
    let ConfigErrors(mistakes) = parse(&lines.collect::<Vec<_>>().join("\n")).unwrap_err();
    // All keys are known; only the files do not exist here.
    let keys: Vec<&str> =
        mistakes.iter().filter_map(|mistake| mistake.message.split_once(": ")).map(|(key, _)| key).collect();
    let files = [
        "tls.cert",
        "tls.key",
        "tls.client_ca_file",
        "tls.client_crl_file",
        "access.token_file",
        "access.attic.rs256_public_key_file",
        "access.attic.rs256_private_key_file",
        "access.attic.hs256_secret_file",
        "worker.root",
        "workers.token_file",
    ];
    assert_eq!(keys, files, "{mistakes:?}");
}
