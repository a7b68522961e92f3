// Bodies of HTTP responses that are made of an image's file: as it is, or
// compressed. Both end early, so that the client sees a short body, when the
// file is not any more what it was when it was opened.
#pragma once

#include <cstddef>
#include <memory>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/compress/encoder.h"
#include "pkg/http/server.h"
#include "pkg/store/record.h"

namespace bim::api {

// Is the open file still what it was when it was opened? (Not by ctime: that
// changes, too, when the image is removed while somebody reads it.)
// FAILED_PRECONDITION: no.
base::Status CheckImageFile(int fd, const store::FileStamp& stamp);

// DATA_LOSS: the file has become shorter.
base::Status ReadImageFile(int fd, void* buffer, size_t size, uint64_t offset);

// The file as the body of `response`, with ranges.
void SendImageFile(base::UniqueFd fd, const store::FileStamp& stamp,
                   http::Response& response);

// The file as one stream of the encoder's; holes are not read.
std::unique_ptr<http::BodyMaker> MakeEncodedBody(
    base::UniqueFd fd, const store::FileStamp& stamp,
    std::unique_ptr<compress::Encoder> encoder);

}  // namespace bim::api
