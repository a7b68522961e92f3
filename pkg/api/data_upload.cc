#include "pkg/api/data_upload.h"

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "pkg/base/names.h"
#include "pkg/base/status.h"
#include "pkg/http/client.h"

namespace bim::api {
namespace {

// What a request wants to bring.
struct Part {
  uint64_t offset = 0;
  std::optional<uint64_t> size;    // of the whole file
  std::optional<uint64_t> length;  // of this body
  // The end of the body is the end of the file.
  bool complete = false;
};

base::Result<Part> PartOfPut(const http::Request& request) {
  const std::string range = ListField(request, "content-range");
  if (range.empty()) {
    return Part{.size = request.content_length,
                .length = request.content_length,
                .complete = !request.content_length.has_value()};
  }
  const auto parsed = http::ParseContentRange(range);
  if (!parsed) {
    return base::InvalidArgumentError(
        "Content-Range: expected bytes <first>-<last>/<total>, found '" +
        base::Printable(range) + "'");
  }
  const Part part{.offset = parsed->first,
                  .size = parsed->total,
                  .length = parsed->last - parsed->first + 1};
  if (request.content_length && request.content_length != part.length) {
    return base::InvalidArgumentError(
        "Content-Range tells of " + std::to_string(*part.length) +
        " bytes, Content-Length of " + std::to_string(*request.content_length));
  }
  return part;
}

base::Result<Part> PartOfPatch(const http::Request& request) {
  const auto offset = ParseNumber(request.Field("upload-offset"));
  if (!offset) {
    return base::InvalidArgumentError(
        "Upload-Offset is missing or no number: expected where these bytes "
        "belong");
  }
  Part part{.offset = *offset, .length = request.content_length};
  if (const std::string length = ListField(request, "upload-length");
      !length.empty()) {
    part.size = ParseNumber(length);
    if (!part.size) {
      return base::InvalidArgumentError(
          "Upload-Length: expected the size of the file in bytes, found '" +
          base::Printable(length) + "'");
    }
  }
  return part;
}

void AddState(const manager::UploadStatus& status, http::Response& response) {
  response.headers.emplace_back("Upload-Offset", std::to_string(status.offset));
  if (status.size) {
    response.headers.emplace_back("Upload-Length",
                                  std::to_string(*status.size));
  }
  response.headers.emplace_back("Upload-Complete", status.done ? "?1" : "?0");
}

// A failure before the bytes were looked at.
http::Response Refusal(manager::Manager& manager, std::string_view name,
                       std::string_view uuid, const base::Status& status) {
  if (status.code() == base::Code::kAborted) {
    return Failure(423, status.message());
  }
  if (status.code() == base::Code::kResourceExhausted) {
    return Failure(507, status.message());
  }
  if (status.code() != base::Code::kOutOfRange) return Failure(status);
  http::Response response = Failure(409, status.message());
  if (const auto state = manager.GetUpload(name, uuid); state.ok()) {
    AddState(*state, response);
  }
  return response;
}

// A failure of the bytes themselves.
http::Response ContentFailure(const base::Status& status) {
  switch (status.code()) {
    case base::Code::kFailedPrecondition:
    case base::Code::kDataLoss:
      return Failure(422, status.message());
    case base::Code::kResourceExhausted:
      return Failure(507, status.message());
    case base::Code::kAborted:
      return Failure(423, status.message());
    case base::Code::kOutOfRange:
      return Failure(400, status.message());
    default:
      return Failure(status);
  }
}

class UploadTaker final : public http::BodyTaker {
 public:
  UploadTaker(std::unique_ptr<manager::Upload> upload, const Part& part,
              const ImagePath& path)
      : upload_(std::move(upload)),
        part_(part),
        what_("image '" + std::string(path.name) + "' with uuid '" +
              std::string(path.uuid) + "'") {}

  base::Status OnData(std::span<const std::byte> data) override {
    came_ += data.size();
    if (part_.length && came_ > *part_.length) return WrongLength();
    return upload_->Append(data);
  }

  http::Response Finish(const base::Status& status) override {
    // What came is kept: the upload is broken off when it goes.
    const std::unique_ptr<manager::Upload> upload = std::move(upload_);
    if (!status.ok()) return ContentFailure(status);
    if (part_.length && came_ != *part_.length) {
      return ContentFailure(WrongLength());
    }
    const auto state = upload->Finish(part_.complete);
    if (!state.ok()) return ContentFailure(state.status());
    http::Response response;
    response.status = state->done ? 201 : 204;
    if (state->done) response.body = what_ + " is ready\n";
    AddState(*state, response);
    return response;
  }

 private:
  base::Status WrongLength() const {
    return base::InvalidArgumentError(
        "expected " + std::to_string(*part_.length) + " bytes, found " +
        std::to_string(came_) + (came_ > *part_.length ? " or more" : ""));
  }

  std::unique_ptr<manager::Upload> upload_;
  const Part part_;
  const std::string what_;
  uint64_t came_ = 0;
};

http::Response ServeState(manager::Manager& manager, const ImagePath& path) {
  const auto state = manager.GetUpload(path.name, path.uuid);
  if (!state.ok()) return Failure(state.status());
  http::Response response;
  response.headers.emplace_back("Cache-Control", "no-store");
  AddState(*state, response);
  return response;
}

}  // namespace

http::Response ServeUpload(manager::Manager& manager, const ImagePath& path,
                           const http::Request& request) {
  if (const auto query = ParseQuery(request.query, {}); !query.ok()) {
    return Failure(query.status());
  }
  if (request.method == "HEAD") return ServeState(manager, path);
  const base::Result<Part> part =
      request.method == "PUT" ? PartOfPut(request) : PartOfPatch(request);
  if (!part.ok()) return Failure(part.status());
  base::Result<std::unique_ptr<manager::Upload>> upload =
      manager.BeginUpload(path.name, path.uuid, part->offset, part->size);
  if (!upload.ok()) {
    return Refusal(manager, path.name, path.uuid, upload.status());
  }
  http::Response response;
  response.taker =
      std::make_unique<UploadTaker>(*std::move(upload), *part, path);
  return response;
}

}  // namespace bim::api
