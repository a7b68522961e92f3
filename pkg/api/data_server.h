// The data port: ready images by HTTP, for other daemons and people.
//
//   GET /v1/images/<name>/<uuid>/data[?disk=<uuid or path, percent-encoded>]
//   GET /healthz
//
// The handler blocks (it opens files): it runs on the server's workers.
#pragma once

#include "pkg/http/server.h"
#include "pkg/manager/manager.h"

namespace bim::api {

// Answers with the open file, its digest in X-Bim-Sha512 (hex) and as ETag, or
// with a line of text: 404 for NOT_FOUND, 400 INVALID_ARGUMENT, 409
// FAILED_PRECONDITION, 403 PERMISSION_DENIED, 503 UNAVAILABLE and
// RESOURCE_EXHAUSTED, 405 for methods but GET and HEAD, else 500. `manager`
// outlives the handler.
http::Handler DataHandler(manager::Manager& manager);

}  // namespace bim::api
