#include "pkg/http/url.h"

#include <curl/curl.h>
#include <strings.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "pkg/http/client.h"

namespace bim::http {
namespace {

constexpr size_t kMaxUrlBytes = 16 * 1024;

struct UrlDeleter {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
using Url = std::unique_ptr<CURLU, UrlDeleter>;

// Null when curl cannot read it.
Url Parse(const std::string& text, unsigned int flags = 0) {
  Url url(curl_url());
  if (curl_url_set(url.get(), CURLUPART_URL, text.c_str(), flags) != CURLUE_OK)
    return nullptr;
  return url;
}

// Empty when the part is absent.
std::string Part(const Url& url, CURLUPart part, unsigned int flags = 0) {
  char* text = nullptr;
  if (curl_url_get(url.get(), part, &text, flags) != CURLUE_OK) return "";
  std::string result(text);
  curl_free(text);
  return result;
}

bool StartsWithIgnoringCase(std::string_view text, std::string_view prefix) {
  return text.size() >= prefix.size() &&
         strncasecmp(text.data(), prefix.data(), prefix.size()) == 0;
}

bool IsControlOrSpace(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte <= 0x20 || byte == 0x7f;
}

// "host", "host:8080" and "[::1]:8080" are plain; what has a port of letters
// may be the beginning of a password with a slash in it.
bool IsPlainAuthority(std::string_view authority) {
  if (authority.starts_with('[')) {
    const size_t end = authority.find(']');
    if (end == std::string_view::npos) return false;
    authority.remove_prefix(end + 1);
  }
  const size_t colon = authority.find(':');
  if (colon == std::string_view::npos) return true;
  return std::ranges::all_of(authority.substr(colon + 1),
                             [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

base::Status CheckUrl(std::string_view url) {
  if (url.empty()) {
    return base::InvalidArgumentError(
        "the URL is empty; expected http://host/path or https://host/path");
  }
  if (url.size() > kMaxUrlBytes) {
    return base::InvalidArgumentError(
        "the URL has " + std::to_string(url.size()) + " bytes; at most " +
        std::to_string(kMaxUrlBytes) + " are accepted");
  }
  const std::string shown = RedactUrl(url);
  if (std::ranges::any_of(url, IsControlOrSpace)) {
    return base::InvalidArgumentError(
        "the URL " + shown +
        " contains a space or control character; write it as %20 and the like");
  }
  size_t authority_begin = 0;
  if (StartsWithIgnoringCase(url, "http://")) {
    authority_begin = 7;
  } else if (StartsWithIgnoringCase(url, "https://")) {
    authority_begin = 8;
  } else {
    return base::InvalidArgumentError("the URL " + shown +
                                      " must begin with http:// or https://");
  }
  std::string_view authority = url.substr(authority_begin);
  authority = authority.substr(0, authority.find_first_of("/?#"));
  if (authority.find('@') != std::string_view::npos) {
    return base::InvalidArgumentError(
        "the URL " + shown +
        " contains user info (user:password@); credentials go into headers or "
        "a netrc file");
  }
  if (authority.empty() || authority.starts_with(':')) {
    return base::InvalidArgumentError("the URL " + shown + " names no host");
  }
  if (!IsPlainAuthority(authority)) {
    return base::InvalidArgumentError("the URL " + shown +
                                      " has a port that is not a number");
  }
  const Url parsed = Parse(std::string(url));
  if (parsed == nullptr || Part(parsed, CURLUPART_HOST).empty()) {
    return base::InvalidArgumentError("the URL " + shown +
                                      " has an unreadable host or port");
  }
  return base::OkStatus();
}

std::string RedactUrl(std::string_view url) {
  std::string_view scheme;
  std::string_view rest = url;
  if (const size_t end = url.find("://");
      end != std::string_view::npos && end < url.find_first_of("/?#@")) {
    scheme = url.substr(0, end + 3);
    rest = url.substr(end + 3);
  }
  std::string_view authority = rest.substr(0, rest.find_first_of("/?#"));
  if (authority.find('@') != std::string_view::npos) {
    // To the last one, even if it lies in the path: a password with '@' and '/'
    // in it, unescaped, is read wrongly but shown to nobody.
    rest = rest.substr(0, rest.find_first_of("?#"));
    rest.remove_prefix(rest.rfind('@') + 1);
    authority = rest.substr(0, rest.find('/'));
  }
  std::string_view path = rest.substr(authority.size());
  path = path.substr(0, path.find_first_of("?#"));
  std::string shown(scheme);
  if (IsPlainAuthority(authority)) {
    shown += authority;
    shown += path;
  } else {
    shown += "(unreadable host)";
  }
  std::ranges::replace_if(
      shown,
      [](char c) {
        const auto byte = static_cast<unsigned char>(c);
        return byte < 0x20 || byte == 0x7f;
      },
      '?');
  return shown;
}

base::Result<std::string> ResolveRedirect(const std::string& base,
                                          const std::string& location) {
  const Url url = Parse(base);
  if (url == nullptr || location.size() > kMaxUrlBytes ||
      curl_url_set(url.get(), CURLUPART_URL, location.c_str(),
                   CURLU_NON_SUPPORT_SCHEME | CURLU_URLENCODE) != CURLUE_OK) {
    return base::FailedPreconditionError(
        "redirected to an unreadable URL (Location: " +
        RedactUrl(location.substr(0, 256)) + ")");
  }
  const std::string scheme = Part(url, CURLUPART_SCHEME);
  if (scheme != "http" && scheme != "https") {
    return base::FailedPreconditionError("redirected to a URL of scheme '" +
                                         scheme +
                                         "'; only http and https are followed");
  }
  std::string next = Part(url, CURLUPART_URL);
  if (base::Status status = CheckUrl(next); !status.ok()) {
    return base::FailedPreconditionError(
        "redirected to a URL that cannot be "
        "followed: " +
        status.message());
  }
  return next;
}

bool SameOrigin(const std::string& a, const std::string& b) {
  const Url left = Parse(a);
  const Url right = Parse(b);
  if (left == nullptr || right == nullptr) return false;
  const auto same = [&](CURLUPart part, unsigned int flags) {
    return strcasecmp(Part(left, part, flags).c_str(),
                      Part(right, part, flags).c_str()) == 0;
  };
  return same(CURLUPART_SCHEME, 0) && same(CURLUPART_HOST, 0) &&
         same(CURLUPART_PORT, CURLU_DEFAULT_PORT);
}

}  // namespace bim::http
