// URLs inside the client: joining a redirect, comparing origins.
//
// Pure functions, no I/O. What callers outside the room need is in client.h.
#pragma once

#include <string>
#include <string_view>

#include "pkg/base/status.h"

namespace bim::http {

// What `location` (the value of a Location header, absolute or relative) means
// when it came from `base`. FAILED_PRECONDITION when it is unreadable, has user
// info or is neither http nor https; the message shows no query and no user
// info.
base::Result<std::string> ResolveRedirect(const std::string& base,
                                          const std::string& location);

// True when scheme, host (in any case) and port are the same. False when either
// is unreadable.
bool SameOrigin(const std::string& a, const std::string& b);

}  // namespace bim::http
