//! A cache that looks in others: in another server, and in a folder that Nix wrote.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::{fs, io};

use gf_tests::{Nix, Place};

use super::{archives_put, gf_nix, main_cache, public_key, pull};
use crate::Fixture;

/// Serves the files of a folder, as any web server does with a static binary cache, until the test ends.
fn serve(folder: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let folder = folder.clone();
            thread::spawn(move || answer(stream, &folder));
        }
    });
    address
}

/// One request a connection. Who hangs up early wanted no more.
fn answer(mut stream: TcpStream, folder: &Path) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = request.split(' ');
    let (verb, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match fs::read(folder.join(path.trim_start_matches('/'))) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    if verb == "GET" {
        stream.write_all(&body)?;
    }
    Ok(())
}

/// Has Nix write a closure into a folder as a binary cache that it signs. The folder, and the key to trust.
fn write_folder(nix: &Nix<'_>, path: &str) -> (PathBuf, String) {
    let text = |name: &str| nix.path(name).display().to_string();
    let (secret, public) = (text("secret"), text("public"));
    nix.output("nix-store", &["--generate-binary-cache-key", "folder-1", &secret, &public]).unwrap();
    nix.output("nix", &["copy", "--to", &format!("file://{}?secret-key={secret}", text("folder")), path]).unwrap();
    (nix.on_host("folder"), fs::read_to_string(nix.on_host("public")).unwrap())
}

#[test]
fn what_is_elsewhere_comes_through_stays_and_need_not_be_pushed() {
    let (first, second, third) = (Fixture::start(), Fixture::start(), Fixture::start());
    let place = Place::host().unwrap();
    let builder = Nix::machine(&place, "builder").unwrap();
    let (served, filed) = (builder.build_closure(3, "served").unwrap(), builder.build_closure(2, "filed").unwrap());
    builder.output("nix", &["copy", "--to", &main_cache(&first.server), &served]).unwrap();
    let (folder, folder_key) = write_folder(&builder, &filed);
    let folder = format!("http://{}", serve(folder));
    let (first_cache, first_key) = (main_cache(&first.server), public_key(&first.server));

    let keys = ["--upstream-public-key", &first_key, "--upstream-public-key", folder_key.trim()];
    let upstreams = ["cache", "set", "main", "--upstream", &first_cache, "--upstream", &folder];
    gf_nix(&builder, &second.server, &[&upstreams[..], &keys].concat()).success().unwrap();
    gf_nix(&builder, &third.server, &[&upstreams[..], &keys].concat()).success().unwrap();
    let trusted = [first_key.as_str(), folder_key.trim(), &public_key(&second.server)].join(" ");
    let user = Nix::machine(&place, "user").unwrap();
    for path in [&served, &filed] {
        pull(&user, &second.server, &trusted, path).success().unwrap();
        assert_eq!(user.archive(path).unwrap(), builder.archive(path).unwrap());
    }
    let shown = gf_nix(&user, &second.server, &["cache", "show"]).success().unwrap().stdout;
    for from in [format!("from      {first_cache}: 3 paths"), format!("from      {folder}: 2 paths")] {
        assert!(shown.contains(&from), "{from}: {shown}");
    }

    // What they signed is theirs to give, and is left out unless it is asked for.
    let spared = gf_nix(&user, &third.server, &["push", "main", &served]).success().unwrap().stderr;
    assert!(spared.contains("main: 0 paths pushed") && spared.contains("3 are signed by a cache"), "{spared}");
    let pushed = gf_nix(&user, &third.server, &["push", "main", "--with-upstream", &served]).success().unwrap().stderr;
    assert!(pushed.contains("main: 3 paths pushed"), "{pushed}");

    // It stays when its source is gone.
    first.stop();
    let other = Nix::machine(&place, "other").unwrap();
    pull(&other, &second.server, &trusted, &served).success().unwrap();
    assert_eq!(other.archive(&served).unwrap(), builder.archive(&served).unwrap());
    assert!(archives_put(second.server.address()).abs() < 0.5, "somebody pushed it");
    second.stop();
    third.stop();
}

/// Nobody is locked in: what one writes, the other reads.
#[test]
fn folders_go_to_nix_and_come_from_it() {
    let fixture = Fixture::start();
    let place = Place::host().unwrap();
    let builder = Nix::machine(&place, "builder").unwrap();
    let path = builder.build_closure(3, "folders").unwrap();
    write_folder(&builder, &path);
    let folder = builder.path("folder").display().to_string();
    let imported = gf_nix(&builder, &fixture.server, &["import", "main", &folder]).success().unwrap();
    assert!(imported.stderr.contains("3 paths imported"), "{}", imported.stderr);

    let user = Nix::machine(&place, "user").unwrap();
    let export = user.path("export").display().to_string();
    gf_nix(&user, &fixture.server, &["export", "main", &export, &path]).success().unwrap();
    let key = public_key(&fixture.server);
    let from = format!("file://{export}");
    user.output("nix", &["copy", "--from", &from, &path, "--option", "trusted-public-keys", &key]).unwrap();
    assert_eq!(user.archive(&path).unwrap(), builder.archive(&path).unwrap());
    fixture.stop();
}
