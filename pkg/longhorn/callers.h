// What this daemon asks of others in Longhorn's words: managers and replicas to
// push to us (transfer::PushRequester), data sources for their file.
//
// All functions block and may be called from any thread.
#pragma once

#include <memory>
#include <stop_token>
#include <string>

#include "pkg/base/status.h"
#include "pkg/store/layout.h"
#include "pkg/transfer/push_requester.h"

namespace bim::longhorn {

std::unique_ptr<transfer::PushRequester> MakePushRequester();

// Asks the data source at `address` ("host:port") for the file of `key` on the
// disk of that uuid: it must be the place of that disk's data source files,
// complete, and of that uuid. The data source lets go of it; it is still where
// it was. At most 20 s. FAILED_PRECONDITION: it has another one, or is not
// done; UNAVAILABLE: it cannot be reached; INVALID_ARGUMENT: no address.
base::Status ClaimDataSource(const std::string& address,
                             const store::ImageKey& key,
                             const std::string& disk_uuid);

}  // namespace bim::longhorn
