// http, https and file URLs.

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/http/client.h"
#include "pkg/io/dir.h"
#include "pkg/store/record.h"
#include "pkg/transfer/source.h"

namespace bim::transfer {
namespace {

using base::Code;
using base::Result;
using base::Status;

constexpr size_t kMaxCredentialFile = 64 * 1024;
constexpr std::string_view kFileScheme = "file://";

bool HasPrefixIgnoreCase(std::string_view text, std::string_view prefix) {
  return text.size() >= prefix.size() &&
         std::equal(prefix.begin(), prefix.end(), text.begin(),
                    [](char a, char b) {
                      return a == (b >= 'A' && b <= 'Z' ? b + 32 : b);
                    });
}

// A strong ETag, else a date: what If-Range takes (RFC 9110 13.1.5).
// One that could not be stored and sent back to the letter is none.
std::string ValidatorOf(const http::ResponseHead& head) {
  const bool strong = head.etag.size() >= 2 && head.etag.front() == '"';
  const std::string& validator = strong ? head.etag : head.last_modified;
  const bool plain = validator.size() <= 1024 &&
                     std::all_of(validator.begin(), validator.end(),
                                 [](char c) { return c >= 0x20 && c < 0x7f; });
  return plain ? validator : "";
}

class HttpSource : public Source {
 public:
  // With a client: a clone, that keeps its connection.
  explicit HttpSource(http::GetRequest request,
                      std::unique_ptr<http::Client> client = nullptr)
      : request_(std::move(request)), client_(std::move(client)) {}

  std::unique_ptr<Source> Clone() override {
    return std::make_unique<HttpSource>(request_, http::Client::Make());
  }

  Outcome Read(const Range& range, const std::string& validator,
               SourceSink& sink, std::stop_token stop) override {
    http::GetRequest request = request_;
    const bool whole = range.begin == 0 && range.end == Range::kOpen;
    if (!whole) {
      request.range_begin = range.begin;
      if (range.end != Range::kOpen) request.range_end = range.end;
      request.if_range = validator;
    }
    Adapter adapter(sink, whole ? std::nullopt : std::optional(range),
                    validator);
    http::Outcome got = Get(request, adapter, stop);
    // Of an open range: it does not fit what is there now, the whole file,
    // then.
    if (!whole && range.end == Range::kOpen &&
        (got.http_status == 416 || adapter.odd_range())) {
      BIM_LOG_INFO("{}: the range from {} on is refused, starting over",
                   http::RedactUrl(request.url), range.begin);
      request.range_begin.reset();
      request.if_range.clear();
      Adapter all(sink, std::nullopt, "");
      got = Get(request, all, stop);
    }
    Outcome outcome;
    outcome.status = std::move(got.status);
    outcome.retry_after = got.retry_after;
    switch (got.failure) {
      case http::Failure::kNone:
        outcome.failure = Failure::kNone;
        break;
      case http::Failure::kTransient:
        outcome.failure = Failure::kTransient;
        break;
      case http::Failure::kPermanent:
      case http::Failure::kRefused:
        // A range that is not there (any more) says nothing of the file.
        outcome.failure =
            !whole && (got.http_status == 416 || adapter.odd_range())
                ? Failure::kTransient
                : Failure::kPermanent;
        break;
      case http::Failure::kCancelled:
        outcome.failure = Failure::kCancelled;
        break;
    }
    return outcome;
  }

 private:
  http::Outcome Get(const http::GetRequest& request, http::Sink& sink,
                    std::stop_token stop) {
    return client_ ? client_->Get(request, sink, stop)
                   : http::Get(request, sink, stop);
  }

  class Adapter : public http::Sink {
   public:
    // `range`: what was asked for, nullopt: the whole file.
    Adapter(SourceSink& sink, std::optional<Range> range,
            const std::string& validator)
        : sink_(sink), range_(range), validator_(validator) {}

    bool odd_range() const { return odd_range_; }

    Status OnHead(const http::ResponseHead& head) override {
      SourceHead out;
      out.content_type = head.content_type;
      out.validator = ValidatorOf(head);
      if (head.status == 206) {
        // Strictly what was asked for, of the content that we have a part of.
        const auto& got = head.content_range;
        const bool fits =
            range_ && got && got->total && got->first == range_->begin &&
            got->last + 1 == std::min(range_->end, *got->total) &&
            out.validator == validator_ && head.content_encoding.empty();
        if (!fits) {
          odd_range_ = true;
          return base::UnavailableError(
              "the server answered with another range than was asked for");
        }
        out.offset = range_->begin;
        out.size = got->total;
        out.ranges = true;
      } else {
        out.size = head.content_length;
        out.ranges = head.accepts_ranges;
        out.content_encoding = head.content_encoding;
      }
      return sink_.OnHead(out);
    }

    Status OnData(std::span<const std::byte> data) override {
      return sink_.OnData(data);
    }

   private:
    SourceSink& sink_;
    const std::optional<Range> range_;
    const std::string validator_;
    bool odd_range_ = false;
  };

  const http::GetRequest request_;
  const std::unique_ptr<http::Client> client_;
};

// The path of a file URL: percent-decoded, absolute, without "..".
Result<std::string> FilePath(const std::string& url) {
  std::string_view rest(url);
  rest.remove_prefix(kFileScheme.size());
  if (rest.starts_with("localhost/")) rest.remove_prefix(9);
  std::string path;
  for (size_t i = 0; i < rest.size(); ++i) {
    if (rest[i] != '%') {
      path.push_back(rest[i]);
      continue;
    }
    // Two hex digits, and not those of NUL.
    const std::string_view hex = rest.substr(i + 1, 2);
    int value = 0;
    const auto parsed =
        std::from_chars(hex.data(), hex.data() + hex.size(), value, 16);
    if (hex.size() != 2 || parsed.ptr != hex.data() + 2 || value <= 0) {
      return base::InvalidArgumentError(
          "the file URL has a malformed escape at character " +
          std::to_string(i + 1 + kFileScheme.size()));
    }
    path.push_back(static_cast<char>(value));
    i += 2;
  }
  if (path.empty() || path[0] != '/') {
    return base::InvalidArgumentError(
        "a file URL is file:// and an absolute path, as in "
        "file:///srv/images/a.qcow2");
  }
  if ((path + "/").find("/../") != std::string::npos) {
    return base::InvalidArgumentError("a file URL may not hold '..'");
  }
  return path;
}

class LocalFileSource : public Source {
 public:
  LocalFileSource(std::string path, std::vector<std::string> roots)
      : path_(std::move(path)), roots_(std::move(roots)) {}

  Outcome Read(const Range& range, const std::string& validator,
               SourceSink& sink, std::stop_token stop) override {
    auto fd = OpenBelowRoots();
    if (!fd.ok()) return {Failure::kPermanent, fd.status(), std::nullopt};
    struct stat st = {};
    if (::fstat(fd->get(), &st) != 0 || !S_ISREG(st.st_mode)) {
      return {Failure::kPermanent,
              base::FailedPreconditionError(path_ + " is not a regular file"),
              std::nullopt};
    }
    store::ImageRecord record;
    record.stamp = store::StampOf(st);
    return MakeFileSource(*std::move(fd), std::move(record))
        ->Read(range, validator, sink, stop);
  }

 private:
  // Below a root no link leads out; without roots the operator allows all.
  Result<base::UniqueFd> OpenBelowRoots() const {
    if (roots_.empty()) {
      base::UniqueFd fd(
          ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
      if (!fd) return base::ErrnoError(errno, "cannot open " + path_);
      return fd;
    }
    for (const std::string& root : roots_) {
      const std::string prefix = root.ends_with('/') ? root : root + "/";
      if (!path_.starts_with(prefix)) continue;
      BIM_ASSIGN_OR_RETURN(io::Dir dir, io::Dir::Open(root));
      return dir.OpenFile(path_.substr(prefix.size()), O_RDONLY | O_NONBLOCK);
    }
    return base::PermissionDeniedError(
        path_ + " is not below a directory of sources.file_roots");
  }

  const std::string path_;
  const std::vector<std::string> roots_;
};

Status ReadHeaders(const io::Dir& dir, const std::string& name,
                   std::vector<std::string>& headers) {
  auto text = dir.ReadFile(name, kMaxCredentialFile);
  if (!text.ok()) return text.status();
  size_t line_number = 0;
  std::string_view rest = *text;
  while (!rest.empty()) {
    const size_t end = rest.find('\n');
    std::string_view line = rest.substr(0, end);
    rest = end == std::string_view::npos ? "" : rest.substr(end + 1);
    ++line_number;
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) {
      line.remove_suffix(1);
    }
    if (line.empty() || line.front() == '#') continue;
    const size_t colon = line.find(':');
    if (colon == 0 || colon == std::string_view::npos) {
      // The line itself may be a secret.
      return base::FailedPreconditionError(
          "line " + std::to_string(line_number) + " of the credential file " +
          name + " is not of the form 'Name: value'");
    }
    headers.emplace_back(line);
  }
  return base::OkStatus();
}

}  // namespace

Status CheckSourceUrl(const std::string& url, const Options& options) {
  if (url.empty()) {
    return base::InvalidArgumentError(
        "source.url is missing: expected http://, https:// or file://");
  }
  if (HasPrefixIgnoreCase(url, kFileScheme)) {
    if (!options.allow_file) {
      return base::PermissionDeniedError(
          "file:// sources are not allowed by the operator "
          "(sources.allow_file)");
    }
    BIM_ASSIGN_OR_RETURN(std::string path, FilePath(url));
    if (options.file_roots.empty()) return base::OkStatus();
    for (const std::string& root : options.file_roots) {
      if (path.starts_with(root.ends_with('/') ? root : root + "/")) {
        return base::OkStatus();
      }
    }
    return base::PermissionDeniedError(
        path + " is not below a directory of sources.file_roots");
  }
  return http::CheckUrl(url);
}

Result<std::unique_ptr<Source>> MakeUrlSource(const std::string& url,
                                              const std::string& credential,
                                              const Options& options) {
  BIM_RETURN_IF_ERROR(CheckSourceUrl(url, options));
  if (HasPrefixIgnoreCase(url, kFileScheme)) {
    BIM_ASSIGN_OR_RETURN(std::string path, FilePath(url));
    return std::unique_ptr<Source>(
        std::make_unique<LocalFileSource>(path, options.file_roots));
  }
  http::GetRequest request;
  request.url = url;
  request.proxy = options.proxy;
  request.no_proxy = options.no_proxy;
  request.ca_file = options.ca_file;
  request.deadlines = options.deadlines;
  if (!credential.empty()) {
    BIM_RETURN_IF_ERROR(base::CheckName(credential, "credential"));
    if (options.credentials_dir.empty()) {
      return base::NotFoundError("cannot find credential '" + credential +
                                 "': sources.credentials_dir is not set");
    }
    BIM_ASSIGN_OR_RETURN(io::Dir dir, io::Dir::Open(options.credentials_dir));
    const Status headers =
        ReadHeaders(dir, credential + ".headers", request.headers);
    if (!headers.ok() && headers.code() != Code::kNotFound) return headers;
    const bool netrc = dir.Stat(credential + ".netrc").ok();
    if (netrc) {
      request.netrc_file =
          options.credentials_dir + "/" + credential + ".netrc";
    }
    if (!headers.ok() && !netrc) {
      return base::NotFoundError("cannot find credential '" + credential +
                                 "': neither " + credential + ".headers nor " +
                                 credential + ".netrc in " +
                                 options.credentials_dir);
    }
  }
  return std::unique_ptr<Source>(
      std::make_unique<HttpSource>(std::move(request)));
}

}  // namespace bim::transfer
