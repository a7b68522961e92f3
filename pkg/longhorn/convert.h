// Messages of bimrpc to what the manager takes, and back. Pure.
#pragma once

#include <string>

#include "bimrpc/bimrpc.pb.h"
#include "pkg/base/status.h"
#include "pkg/manager/directed.h"

namespace bim::longhorn {

// INVALID_ARGUMENT: "<field> is missing", a checksum that is no SHA-512 in
// hex, a negative size. Sources and disk are left empty.
base::Result<manager::DirectedSpec> ToDirected(
    bool has_spec, const ::bimrpc::BackingImageSpec& spec);

// INVALID_ARGUMENT "<field> is missing".
base::Status CheckPresent(const char* field, const std::string& value);

void ToProto(const manager::DirectedStatus& status,
             ::bimrpc::BackingImageResponse* proto);

}  // namespace bim::longhorn
