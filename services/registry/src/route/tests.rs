//! Every row of the distribution API as method and path.

use super::*;

const HEX: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const ID: &str = "018f4d0c-0000-7000-8000-000000000001";

fn repo(text: &str) -> RepositoryName {
    RepositoryName::parse(text).unwrap()
}

fn sha256() -> Digest {
    Digest::parse(&format!("sha256:{HEX}")).unwrap()
}

/// `DIGEST` and `ID` in the path stand for valid ones.
fn check(request: &str, expect: Result<Endpoint, RouteError>) {
    let request = request
        .replace("DIGEST", sha256().as_str())
        .replace("ID", ID);
    let (method, target) = request.split_once(' ').unwrap();
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query)));
    assert_eq!(
        route(&method.parse().unwrap(), path, query),
        expect,
        "{request}"
    );
}

// SPEC 16
#[test]
fn every_endpoint_of_the_specification_has_a_route() {
    let id = || UploadId::parse(ID).unwrap();
    let tag = |text: &str| ManifestRef::Tag(Tag::parse(text).unwrap());
    let page = Page {
        limit: Some(3),
        last: Some("b".into()),
    };
    check("GET /v2/", Ok(Endpoint::Base));
    check("GET /v2", Ok(Endpoint::Base));
    check(
        "GET /v2/_catalog?n=3&last=b",
        Ok(Endpoint::Catalog(page.clone())),
    );
    check(
        "HEAD /v2/a/b/blobs/DIGEST",
        Ok(Endpoint::GetBlob(repo("a/b"), sha256())),
    );
    check(
        &format!("GET /v2/a/blobs/sha256%3A{HEX}"),
        Ok(Endpoint::GetBlob(repo("a"), sha256())),
    );
    check(
        "DELETE /v2/a/blobs/DIGEST",
        Ok(Endpoint::DeleteBlob(repo("a"), sha256())),
    );
    check(
        "GET /v2/docker.io/library/nginx/manifests/1.27",
        Ok(Endpoint::GetManifest(
            repo("docker.io/library/nginx"),
            tag("1.27"),
        )),
    );
    check(
        "GET /v2/a/manifests/DIGEST",
        Ok(Endpoint::GetManifest(
            repo("a"),
            ManifestRef::Digest(sha256()),
        )),
    );
    check(
        "PUT /v2/a/manifests/x",
        Ok(Endpoint::PutManifest(repo("a"), tag("x"), vec![])),
    );
    check(
        "PUT /v2/a/manifests/DIGEST?tag=x&tag=y",
        Ok(Endpoint::PutManifest(
            repo("a"),
            ManifestRef::Digest(sha256()),
            vec![Tag::parse("x").unwrap(), Tag::parse("y").unwrap()],
        )),
    );
    check(
        "DELETE /v2/a/manifests/x",
        Ok(Endpoint::DeleteManifest(repo("a"), tag("x"))),
    );
    check(
        "POST /v2/a/blobs/uploads/",
        Ok(Endpoint::StartUpload(repo("a"), Algorithm::Sha256)),
    );
    check(
        "POST /v2/a/blobs/uploads",
        Ok(Endpoint::StartUpload(repo("a"), Algorithm::Sha256)),
    );
    check(
        "POST /v2/a/blobs/uploads/?digest-algorithm=sha512",
        Ok(Endpoint::StartUpload(repo("a"), Algorithm::Sha512)),
    );
    check(
        "POST /v2/a/blobs/uploads/?digest=DIGEST",
        Ok(Endpoint::PushBlob(repo("a"), sha256())),
    );
    check(
        "POST /v2/a/blobs/uploads/?mount=DIGEST&from=b/c",
        Ok(Endpoint::MountBlob(repo("a"), sha256(), Some(repo("b/c")))),
    );
    check(
        "POST /v2/a/blobs/uploads/?mount=DIGEST",
        Ok(Endpoint::MountBlob(repo("a"), sha256(), None)),
    );
    check(
        "POST /v2/a/blobs/uploads/?mount=DIGEST&from=B",
        Ok(Endpoint::StartUpload(repo("a"), Algorithm::Sha256)),
    );
    check(
        "PATCH /v2/a/blobs/uploads/ID?_state=s",
        Ok(Endpoint::PatchUpload(repo("a"), id(), "s".into())),
    );
    check(
        "PUT /v2/a/blobs/uploads/ID?_state=s&digest=DIGEST",
        Ok(Endpoint::FinishUpload(
            repo("a"),
            id(),
            "s".into(),
            sha256(),
        )),
    );
    check(
        "GET /v2/a/blobs/uploads/ID?_state=s",
        Ok(Endpoint::UploadStatus(repo("a"), id(), "s".into())),
    );
    check(
        "DELETE /v2/a/blobs/uploads/ID",
        Ok(Endpoint::CancelUpload(repo("a"), id(), String::new())),
    );
    check(
        "GET /v2/a/tags/list?n=3&last=b",
        Ok(Endpoint::Tags(repo("a"), page)),
    );
    check(
        "GET /v2/a/referrers/DIGEST?artifactType=x/y",
        Ok(Endpoint::Referrers(
            repo("a"),
            sha256(),
            Some("x/y".into()),
            Page::default(),
        )),
    );
}

#[test]
fn words_of_the_api_may_be_parts_of_names() {
    check(
        "GET /v2/blobs/blobs/DIGEST",
        Ok(Endpoint::GetBlob(repo("blobs"), sha256())),
    );
    check(
        "GET /v2/a/tags/tags/list",
        Ok(Endpoint::Tags(repo("a/tags"), Page::default())),
    );
    check(
        "GET /v2/a/blobs/uploads/tags/list",
        Ok(Endpoint::Tags(repo("a/blobs/uploads"), Page::default())),
    );
}

#[test]
fn nothing_that_could_leave_its_place_passes() {
    check("GET /v2/../etc/manifests/x", Err(RouteError::Name));
    check("GET /v2/a//b/manifests/x", Err(RouteError::Name));
    check("GET /v2/a%2fb/manifests/x", Err(RouteError::Name));
    check("GET /v2/A/manifests/x", Err(RouteError::Name));
    check("GET /v2/_uploads/manifests/x", Err(RouteError::Name));
    check("GET /v2/a/manifests/..", Err(RouteError::NoSuchTag));
    check("GET /v2/a/manifests/.INVALID", Err(RouteError::NoSuchTag));
    check("PUT /v2/a/manifests/.INVALID", Err(RouteError::Tag));
    check("PUT /v2/a/manifests/x?tag=..", Err(RouteError::Tag));
    check(
        "GET /v2/a/manifests/sha256:baddigeststring",
        Err(RouteError::Digest),
    );
    check("GET /v2/a/blobs/sha256:..%2f..", Err(RouteError::Digest));
    check(
        "GET /v2/a/blobs/uploads/not-a-uuid",
        Err(RouteError::Upload),
    );
    check("GET /v2/a/blobs/uploads/..", Err(RouteError::Upload));
    check("PUT /v2/a/blobs/uploads/ID", Err(RouteError::Digest));
    check(
        "POST /v2/a/blobs/uploads/?digest=md5:aa",
        Err(RouteError::Digest),
    );
    check("GET /v2/a/tags/list?n=-1", Err(RouteError::Page));
    check(
        "GET /v2/_catalog?n=99999999999999999999999",
        Err(RouteError::Page),
    );
    check("GET /v1/a", Err(RouteError::NotFound));
    check("GET /v2x", Err(RouteError::NotFound));
    check("GET /v2/manifests/x", Err(RouteError::NotFound));
    check("POST /v2/", Err(RouteError::Method("GET, HEAD")));
    check(
        "PATCH /v2/a/manifests/x",
        Err(RouteError::Method("GET, HEAD, PUT, DELETE")),
    );
    check("GET /v2/a/blobs/uploads/", Err(RouteError::Method("POST")));
}
