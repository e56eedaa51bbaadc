// Camera of the visitor, for the scripts that are read after this file. The error is a sentence for the visitor.
async function openCamera() {
    try {
        return await navigator.mediaDevices.getUserMedia({video: {facingMode: {ideal: "environment"}}});
    } catch (error) {
        throw new Error(window.isSecureContext
            ? `The camera cannot be used: ${error.message}.` : "Browsers allow the camera only on this machine or over https.");
    }
}
function closeCamera(stream) { for (const track of stream?.getTracks() ?? []) track.stop(); }
