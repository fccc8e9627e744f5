use gf_blobstore::ErrorKind;
use gf_nix_cache::{CacheError, Kept};
use gf_nix_formats::{BuildTrace, BuildTraceKey, Realisation, StorePath};
use gf_tenancy::{NixPull, NixPush};

use crate::fixture::{Fixture, Sample};

const PATH: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";
const OTHER: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar";

#[tokio::test]
async fn documents_say_the_same_for_ever() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let (push, pull) = (fixture.grant::<NixPush>("main"), fixture.grant::<NixPull>("main"));
        let id = format!("sha256:{}!out", "0f".repeat(32));
        let realisation = |path: &str| {
            let json = format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{path}","signatures":[]}}"#);
            Realisation::parse(json.as_bytes()).unwrap()
        };
        let first = realisation(PATH);
        assert_eq!(fixture.caches.realisation(&pull, &first.id).await.unwrap(), None);
        assert_eq!(fixture.caches.put_realisation(&push, &first).await.unwrap(), Kept::This);
        assert_eq!(fixture.caches.put_realisation(&push, &first).await.unwrap(), Kept::This);
        assert_eq!(fixture.caches.put_realisation(&push, &realisation(OTHER)).await.unwrap(), Kept::First);
        assert_eq!(fixture.caches.realisation(&pull, &first.id).await.unwrap(), Some(first.format()));

        let key = BuildTraceKey::parse(&format!("{PATH}.drv"), "out").unwrap();
        let trace =
            |path: &str| BuildTrace::parse(format!(r#"{{"outPath":"{path}","signatures":[]}}"#).as_bytes()).unwrap();
        assert_eq!(fixture.caches.put_build_trace(&push, &key, &trace(PATH)).await.unwrap(), Kept::This);
        assert_eq!(fixture.caches.put_build_trace(&push, &key, &trace(OTHER)).await.unwrap(), Kept::First);
        assert_eq!(fixture.caches.build_trace(&pull, &key).await.unwrap(), Some(trace(PATH).format()));

        let build_id = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(fixture.caches.put_debug_info(&push, build_id, r#"{"a":1}"#).await.unwrap(), Kept::This);
        assert_eq!(fixture.caches.put_debug_info(&push, build_id, r#"{"a":2}"#).await.unwrap(), Kept::First);
        assert_eq!(fixture.caches.debug_info(&pull, build_id).await.unwrap().unwrap(), r#"{"a":1}"#);
        for (id, document) in [("../..", "{}"), (build_id, "[]"), (build_id, "no")] {
            let error = fixture.caches.put_debug_info(&push, id, document).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }
}

#[tokio::test]
async fn logs_are_kept_and_replaced() {
    let fixture = Fixture::sqlite().await;
    let (push, pull) = (fixture.grant::<NixPush>("main"), fixture.grant::<NixPull>("main"));
    let derivation = StorePath::parse(&format!("{PATH}.drv")).unwrap();
    assert!(fixture.caches.log(&pull, &derivation).await.unwrap().is_none());
    for text in ["built\n", "built again\n", ""] {
        fixture.caches.put_log(&push, &derivation, text.into()).await.unwrap();
        let mut log = fixture.caches.log(&pull, &derivation).await.unwrap().unwrap();
        let mut read = Vec::new();
        while let Some(piece) = log.read.next().await.unwrap() {
            read.extend_from_slice(&piece);
        }
        assert_eq!((read, log.size_bytes), (text.as_bytes().to_vec(), text.len() as u64));
    }
    let error = fixture.caches.put_log(&push, &Sample::new("a", &[]).path, "x".into()).await.unwrap_err();
    assert!(matches!(error, CacheError::Name(_)), "{error}");
}

#[tokio::test]
async fn pins_move_end_and_are_removed() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let (push, pull) = (fixture.grant::<NixPush>("main"), fixture.grant::<NixPull>("main"));
        let path = |text| StorePath::parse(text).unwrap();
        fixture.caches.pin(&push, "release", &path(PATH), None).await.unwrap();
        fixture.caches.pin(&push, "release", &path(OTHER), Some(7)).await.unwrap();
        let pins = fixture.caches.pins(&pull).await.unwrap();
        assert_eq!((pins.len(), &pins[0].path, pins[0].until_s), (1, &path(OTHER), Some(7)));
        assert!(fixture.caches.unpin(&push, "release").await.unwrap());
        assert!(!fixture.caches.unpin(&push, "release").await.unwrap());
        assert!(fixture.caches.pin(&push, "a b", &path(PATH), None).await.is_err());
    }
}
