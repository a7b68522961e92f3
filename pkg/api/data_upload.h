// The part of the data port that takes uploads; see data_server.h.
#pragma once

#include "pkg/api/data_request.h"
#include "pkg/http/server.h"
#include "pkg/manager/manager.h"

namespace bim::api {

// HEAD, PUT and PATCH of .../upload. Blocks. `manager` outlives the response's
// taker.
http::Response ServeUpload(manager::Manager& manager, const ImagePath& path,
                           const http::Request& request);

}  // namespace bim::api
