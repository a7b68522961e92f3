#include "daemon/upload_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>

#include "pkg/base/unique_fd.h"
#include "pkg/io/dir.h"

namespace bim::daemon {
namespace {

using std::chrono::milliseconds;

// The daemon takes bytes as fast as its disk does, and reads nothing when a
// limit says so; at the end it syncs and checks the whole file.
constexpr milliseconds kStall{60'000};
constexpr milliseconds kPublish{600'000};

// A file of the caller's: no exit code but "failed".
base::Status LocalError(int error_number, const std::string& what) {
  return base::InternalError(base::ErrnoError(error_number, what).message());
}

std::string_view Field(const http::PutResult& answer, std::string_view name) {
  for (const auto& [field, value] : answer.fields) {
    if (field == name) return value;
  }
  return {};
}

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return number;
}

// The line of text of an answer that is no success.
std::string SaidBy(const http::PutResult& answer) {
  std::string_view text = answer.body;
  text = text.substr(0, text.find('\n'));
  return text.empty() ? fmt::format("the daemon answered with HTTP status {}",
                                    answer.status)
                      : std::string(text.substr(0, 1'000));
}

class Uploader {
 public:
  Uploader(const std::string& url, const std::string& file, base::UniqueFd fd,
           uint64_t size,
           const std::function<void(uint64_t, uint64_t)>& on_progress,
           std::stop_token stop, const UploadOptions& options,
           const HttpPut& put)
      : url_(url),
        file_(file),
        fd_(std::move(fd)),
        size_(size),
        on_progress_(on_progress),
        stop_(std::move(stop)),
        options_(options),
        put_(put) {}

  base::Result<UploadResult> Run() {
    UploadResult result{.size = size_};
    int tries = 0;
    milliseconds wait = options_.first_wait;
    std::optional<uint64_t> furthest;
    while (true) {
      Step step = Ask();
      if (step.kind == Step::kGoOn) {
        if (!furthest || step.offset > *furthest) {
          furthest = step.offset;
          tries = 0;
          wait = options_.first_wait;
        }
        step = Send(step.offset, result.sent);
      }
      if (step.kind == Step::kDone) {
        result.was_ready = step.was_ready && result.sent == 0;
        return result;
      }
      if (step.kind == Step::kFailed) return step.status;
      if (++tries >= options_.max_tries) {
        return step.status.WithContext(
            fmt::format("gave up after {} tries without progress", tries));
      }
      if (!Pause(wait)) return base::CancelledError("stopped");
      wait = std::min(wait * 2, options_.max_wait);
    }
  }

 private:
  struct Step {
    enum Kind { kGoOn, kDone, kAgain, kFailed } kind = kFailed;
    base::Status status;  // of kAgain and kFailed
    uint64_t offset = 0;  // of kGoOn
    bool was_ready = false;
  };
  static Step Again(base::Status status) { return {Step::kAgain, status}; }
  static Step Failed(base::Status status) { return {Step::kFailed, status}; }

  http::PutRequest Request(const std::string& method) const {
    http::PutRequest request{.url = url_, .method = method};
    request.deadlines.stall = kStall;
    request.deadlines.first_byte = kPublish;
    return request;
  }

  // What an answer means that says neither where to go on nor "done".
  static Step Judge(const http::PutResult& answer) {
    if (!answer.outcome.status.ok()) {
      const bool transient =
          answer.outcome.failure == http::Failure::kTransient;
      return transient ? Again(answer.outcome.status)
                       : Failed(answer.outcome.status);
    }
    const std::string said = SaidBy(answer);
    switch (answer.status) {
      case 400:
        return Failed(base::InvalidArgumentError(said));
      case 403:
        return Failed(base::PermissionDeniedError(said));
      case 404:
        return Failed(base::NotFoundError(said));
      case 409:
        if (!Field(answer, "upload-offset").empty()) {
          return Again(base::AbortedError(said));
        }
        return Failed(base::FailedPreconditionError(said));
      case 422:
        return Failed(base::DataLossError(said));
      case 423:  // perhaps our own request, whose connection broke
        return Again(base::AbortedError(said));
      case 507:
        return Failed(base::ResourceExhaustedError(said));
      case 408:
      case 429:
      case 500:
      case 502:
      case 503:
      case 504:
        return Again(base::UnavailableError(said));
      default:
        return Failed(base::InternalError(said));
    }
  }

  // Where the upload is.
  Step Ask() {
    const auto nothing = [](std::span<std::byte>) -> base::Result<size_t> {
      return size_t{0};
    };
    http::PutRequest request = Request("HEAD");
    request.content_length = 0;
    const http::PutResult answer = put_(request, nothing, stop_);
    if (!answer.outcome.status.ok() || answer.status != 200) {
      // The answer to a HEAD has no text.
      if (answer.outcome.status.ok() && answer.status == 409) {
        return Failed(base::FailedPreconditionError(
            "the image takes no upload: its source is another one"));
      }
      if (answer.outcome.status.ok() && answer.status == 404) {
        return Failed(base::NotFoundError("cannot find the image any more"));
      }
      return Judge(answer);
    }
    if (Field(answer, "upload-complete") == "?1") {
      return {.kind = Step::kDone, .was_ready = true};
    }
    const auto offset = Number(Field(answer, "upload-offset"));
    if (!offset) {
      return Failed(base::InternalError(
          "the daemon does not say where the upload is: expected "
          "Upload-Offset"));
    }
    const auto length = Number(Field(answer, "upload-length"));
    if ((length && *length != size_) || *offset > size_) {
      return Failed(base::FailedPreconditionError(fmt::format(
          "an upload of another file has begun: expected {} bytes, found {} in "
          "{}; remove the image to start over",
          length ? fmt::format("{}", *length)
                 : fmt::format("at least {}", *offset),
          size_, file_)));
    }
    return {.kind = Step::kGoOn, .offset = *offset};
  }

  // Everything from `offset` on, in one request.
  Step Send(uint64_t offset, uint64_t& sent) {
    http::PutRequest request = Request("PATCH");
    request.headers = {fmt::format("Upload-Offset: {}", offset),
                       fmt::format("Upload-Length: {}", size_)};
    request.content_length = size_ - offset;
    uint64_t at = offset;
    base::Status local;
    const auto read = [&](std::span<std::byte> buffer) -> base::Result<size_t> {
      const size_t want =
          static_cast<size_t>(std::min<uint64_t>(buffer.size(), size_ - at));
      auto count = io::PreadFull(fd_.get(), buffer.data(), want, at,
                                 "cannot read " + file_);
      if (!count.ok()) {
        local = base::InternalError(count.status().message());
        return local;
      }
      if (*count < want) {
        local = base::InternalError(file_ + " became shorter while it is sent");
        return local;
      }
      at += *count;
      sent += *count;
      on_progress_(at, size_);
      return *count;
    };
    on_progress_(offset, size_);
    const http::PutResult answer = put_(request, read, stop_);
    if (!local.ok()) return Failed(local);
    if (!answer.outcome.status.ok()) return Judge(answer);
    if (answer.status == 201) return {.kind = Step::kDone};
    if (answer.status == 204) {
      return Again(
          base::UnavailableError("the daemon took all bytes and expects more"));
    }
    return Judge(answer);
  }

  // False when stopped.
  bool Pause(milliseconds wait) {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    wake.wait_for(lock, stop_, wait, [] { return false; });
    return !stop_.stop_requested();
  }

  const std::string& url_;
  const std::string& file_;
  const base::UniqueFd fd_;
  const uint64_t size_;
  const std::function<void(uint64_t, uint64_t)>& on_progress_;
  const std::stop_token stop_;
  const UploadOptions options_;
  const HttpPut& put_;
};

}  // namespace

base::Result<UploadResult> UploadFile(
    const std::string& url, const std::string& file,
    const std::function<void(uint64_t done, uint64_t total)>& on_progress,
    std::stop_token stop, const UploadOptions& options, const HttpPut& put) {
  const std::string what = "cannot read " + file;
  base::UniqueFd fd(
      open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return LocalError(errno, what);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return LocalError(errno, what);
  if (!S_ISREG(info.st_mode)) {
    return base::InvalidArgumentError(file +
                                      " is not a file: expected an image file");
  }
  return Uploader(url, file, std::move(fd), static_cast<uint64_t>(info.st_size),
                  on_progress, std::move(stop), options, put)
      .Run();
}

}  // namespace bim::daemon
