// The data port: images by HTTP, for other daemons and people. This is its
// reference.
//
// Paths below are behind /v1/images/<name>/<uuid>/. Nothing is authenticated.
// Of a ready image (HEAD answers the head of a GET):
//
//   GET data[?disk=<uuid or path, percent-encoded>]
//     The file, with ranges. ETag is "sha512:<hex>" and X-Bim-Sha512 the same
//     digest. An Accept-Encoding that lists zstd, without a Range: the file as
//     one zstd frame (Content-Encoding: zstd, no length, a weak ETag).
//   GET data?encoding=zstd[&disk=]
//     The same frame as a file of its own: application/zstd.
//   GET manifest
//     What is known of it (store::EncodeManifest), transfer::kManifestType,
//     the ETag of the data.
//   GET extents?begin=&end=[&disk=]
//     Bytes [begin, end) without holes (pkg/transfer/wire.h),
//     transfer::kExtentsType. begin < end <= size, end - begin <= kMaxPart. 412
//     when there is an If-Match, and it is not the ETag of the data. An
//     Accept-Encoding that lists zstd: compressed, when the part is at most
//     kMaxCompressedPart long and gets clearly smaller.
//
//   Bodies of data and extents wait for one of the image's turns (503 with
//   Retry-After when there is none for long) and pass through the rate limit.
//
// Of an image whose source is an upload:
//
//   HEAD upload
//     200, Upload-Offset (bytes that are here), Upload-Length (of the file, if
//     known), Upload-Complete (?1 once the image is ready, else ?0).
//   PUT upload
//     The whole file: Content-Length is its size; chunked, it is not known
//     before the end, and the upload cannot be resumed. With "Content-Range:
//     bytes a-b/total" ("*": as announced before) a part of it.
//   PATCH upload, with Upload-Offset: N and perhaps Upload-Length: total
//     The bytes from N on.
//
//   Offset 0 starts over, any other must be where the upload is. 201: this
//   request published the image. 204 with Upload-Offset: more is expected. 409
//   with Upload-Offset: another offset is expected; without: the image's
//   source is no upload, or it is ready. 422: what came is no image, or not the
//   wanted one. 423: another request is uploading it now. 507: the disk is
//   full. A connection that breaks leaves what came; ask where to go on by
//   HEAD.
//
// GET /healthz answers 200.
//
// Failures are a line of text: 404 for NOT_FOUND, 400 INVALID_ARGUMENT, 409
// FAILED_PRECONDITION, 403 PERMISSION_DENIED, 503 UNAVAILABLE and
// RESOURCE_EXHAUSTED, 405 with Allow for other methods, else 500.
//
// The handler blocks (it opens files): it runs on the server's workers.
#pragma once

#include "pkg/http/server.h"
#include "pkg/manager/manager.h"

namespace bim::api {

// `manager` outlives the handler and the bodies of its responses.
http::Handler DataHandler(manager::Manager& manager);

}  // namespace bim::api
