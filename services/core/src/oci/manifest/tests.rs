//! What is taken as a manifest, and what is read from it.

use super::*;

const A: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const B: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn image(extra: &str) -> String {
    format!(
        r#"{{"schemaVersion":2{extra},"config":{{"mediaType":"c/t","digest":"{A}","size":2}},"layers":[{{"mediaType":"l","digest":"{B}","size":0}}]}}"#
    )
}

fn check(bytes: &str, expect: Result<&str, &str>) {
    match (Manifest::parse(bytes.as_bytes()), expect) {
        (Ok(found), Ok(expect)) => assert_eq!(found.media_type.as_str(), expect, "{bytes:.300}"),
        (Err(error), Err(expect)) => {
            assert!(error.to_string().contains(expect), "{bytes:.300}: {error}");
        }
        (found, _) => panic!("{bytes:.300}: {found:?}"),
    }
}

#[test]
fn a_manifest_has_one_shape_and_one_of_four_types() {
    let [oci, index, docker, list] = ManifestType::ALL.map(ManifestType::as_str);
    let typed = |kind: &str| image(&format!(r#","mediaType":"{kind}""#));
    let of = |kind: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[]}}"#);
    check(&image(""), Ok(oci));
    check(&typed(docker), Ok(docker));
    check(&typed(oci), Ok(oci));
    check(&of(index), Ok(index));
    check(&of(list), Ok(list));
    check(r#"{"schemaVersion":2,"manifests":[]}"#, Ok(index));
    check(r#"{"manifests":[]}"#, Ok(index));
    check(&typed("x/y"), Err("the media type x/y"));
    check(&typed(index), Err("not have the shape"));
    check(&of(oci), Err("not have the shape"));
    check(&image(r#","manifests":[]"#), Err("an image or an index"));
    check(
        r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
        Err("or an index"),
    );
    check(r#"{"schemaVersion":1,"fsLayers":[]}"#, Err("version 1"));
    check(r#"{"schemaVersion":2,"fsLayers":[]}"#, Err("version 1"));
    check(r#"{"schemaVersion":3,"manifests":[]}"#, Err("version 3"));
    check(r#"{"schemaVersion":2}"#, Err("shape"));
    check(r#"{"schemaVersion":2,"layers":[]}"#, Err("shape"));
    check("[]", Err("does not parse"));
    check("", Err("does not parse"));
    // The fields of an object in their order.
    let list = format!(r#"["c/t","{A}",2,null,null,null]"#);
    check(
        "[2,null,null,null,[],null,null,null,null]",
        Err("does not parse"),
    );
    check(&format!(r#"{{"config":{list}}}"#), Err("does not parse"));
    check(
        &format!(r#"{{"manifests":[{list}]}}"#),
        Err("does not parse"),
    );
    let platform = r#""size":0,"platform":["linux","amd64",""]"#;
    check(
        &image("").replace(r#""size":0"#, platform),
        Err("does not parse"),
    );
    check("<html>", Err("does not parse"));
    check(&image("").replace(A, "sha256:x"), Err("does not parse"));
    check(&image("").replace(A, "../x"), Err("does not parse"));
    check(&image(r#","a":1,"a":2"#), Err("twice"));
    check(&image(r#","Layers":[]"#), Err("twice"));
}

#[test]
fn sizes_are_whole_numbers_of_63_bits() {
    let sized = |size: &str| image("").replace(r#""size":2"#, &format!(r#""size":{size}"#));
    check(&sized("0"), Ok(ManifestType::OciManifest.as_str()));
    check(
        &sized("9223372036854775807"),
        Ok(ManifestType::OciManifest.as_str()),
    );
    for wrong in ["-1", "1e5", "1.0", "9223372036854775808", "null", "\"2\""] {
        check(&sized(wrong), Err("does not parse"));
    }
    check(
        &image("").replace(r#","size":2"#, ""),
        Err("does not parse"),
    );
}

#[test]
fn optional_fields_may_be_null() {
    let [oci, index, docker, _] = ManifestType::ALL.map(ManifestType::as_str);
    let all = r#","subject":null,"annotations":null,"artifactType":null,"mediaType":null"#;
    check(&image(all), Ok(oci));
    check(&image(r#","manifests":null"#), Ok(oci));
    let fields = r#""size":0,"urls":null,"annotations":null,"platform":null,"data":null,
        "artifactType":null"#;
    check(&image("").replace(r#""size":0"#, fields), Ok(oci));
    check(
        &image("").replace(r#""mediaType":"l""#, r#""mediaType":null"#),
        Ok(oci),
    );
    let config = format!(r#""config":{{"mediaType":"c","digest":"{A}","size":2}}"#);
    check(
        &format!(r#"{{"schemaVersion":2,{config},"layers":null}}"#),
        Ok(oci),
    );
    check(&format!(r#"{{"schemaVersion":2,{config}}}"#), Ok(oci));
    check(&format!(r#"{{"schemaVersion":null,{config}}}"#), Ok(oci));
    check(
        r#"{"schemaVersion":2,"manifests":null,"config":null,"layers":null}"#,
        Ok(index),
    );
    let typed = format!(r#","mediaType":"{docker}","manifests":null"#);
    check(&image(&typed), Ok(docker));
    let platform = r#""size":0,"platform":{"os":null,"architecture":null,"variant":null}"#;
    let found = image("").replace(r#""size":0"#, platform);
    let found = Manifest::parse(found.as_bytes()).unwrap();
    assert_eq!(found.layers[0].platform, None);
    check(&image(r#","annotations":{"a":null,"b":"c"}"#), Ok(oci));
    check(&image(r#","annotations":{"a":1}"#), Err("does not parse"));
    check(&image(r#","annotations":[]"#), Err("does not parse"));
    check(
        &image("").replace(r#"[{"mediaType""#, r#"[null,{"mediaType""#),
        Err("parse"),
    );
}

#[test]
fn bounds_are_held_to_the_last_one() {
    let layers = |count: usize| {
        let layer = format!(r#"{{"mediaType":"l","digest":"{B}","size":0}}"#);
        let layers = vec![layer; count].join(",");
        image("").replace(r#""layers":["#, &format!(r#""x":0,"layers":[{layers},"#))
    };
    let oci = ManifestType::OciManifest.as_str();
    check(&layers(MANIFEST_DESCRIPTORS - 1), Ok(oci));
    check(
        &layers(MANIFEST_DESCRIPTORS),
        Err("more than 10000 descriptors"),
    );
    let most = usize::try_from(MANIFEST_BYTES).unwrap();
    let padded = |bytes: usize| {
        let pad = "p".repeat(bytes - image(r#","x":"""#).len());
        image(&format!(r#","x":"{pad}""#))
    };
    check(&padded(most), Ok(oci));
    check(&padded(most + 1), Err("more than 16777216"));
}

#[test]
fn foreign_layers_are_known_by_their_type_or_urls() {
    for (layer, expect) in [
        (r#""mediaType":"l""#, false),
        (r#""mediaType":"l","urls":[]"#, false),
        (r#""mediaType":"l","urls":["https://x"]"#, true),
        (
            r#""mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar""#,
            true,
        ),
        (
            r#""mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip""#,
            true,
        ),
    ] {
        let found = image("").replace(r#""mediaType":"l""#, layer);
        let found = Manifest::parse(found.as_bytes()).unwrap();
        assert_eq!(found.layers[0].is_foreign(), expect, "{layer}");
    }
    check(
        &image("").replace(r#""size":0"#, r#""size":0,"urls":[1]"#),
        Err("parse"),
    );
}

#[test]
fn entries_of_an_index_that_are_no_manifests_are_reported() {
    for (kind, expect) in [
        ("", true),
        (ManifestType::OciIndex.as_str(), true),
        (ManifestType::DockerManifest.as_str(), true),
        ("application/vnd.oci.image.layer.v1.tar+gzip", false),
        ("application/vnd.buildkit.cacheconfig.v0", false),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            false,
        ),
    ] {
        let entry = format!(r#"{{"mediaType":"{kind}","digest":"{A}","size":1}}"#);
        let found = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
        let found = Manifest::parse(found.as_bytes()).unwrap();
        assert_eq!(found.manifests[0].is_manifest(), expect, "{kind}");
    }
}

#[test]
fn artifact_type_falls_back_to_the_configuration() {
    for (extra, expect) in [
        ("", "c/t"),
        (r#","artifactType":"""#, "c/t"),
        (r#","artifactType":"a/t""#, "a/t"),
    ] {
        let found = Manifest::parse(image(extra).as_bytes()).unwrap();
        assert_eq!(found.artifact_type.as_deref(), Some(expect), "{extra}");
    }
}

#[test]
fn annotations_are_read_apart() {
    let bytes = image(r#","annotations":{"a":"b","c":null}"#);
    let found = annotations(bytes.as_bytes()).unwrap();
    assert_eq!(
        found,
        [("a", "b"), ("c", "")]
            .map(|(a, b)| (a.into(), b.into()))
            .into()
    );
    assert_eq!(annotations(image("").as_bytes()), None);
}
